# Three managers that are reached by ssh: the loss of one stops nothing. Keys and known hosts are those of your own ssh: what
# `docker --host ssh://… info` can do, this can.

terraform {
  required_version = ">= 1.9"
}

variable "addresses" {
  description = "The addresses of the three machines."
  type        = list(string)
  default     = ["10.0.0.11", "10.0.0.12", "10.0.0.13"]

  validation {
    condition     = length(var.addresses) == 3
    error_message = "addresses must be those of three machines."
  }
}

variable "user" {
  description = "Who may command the engines there: root, or a member of the group docker."
  type        = string
  default     = "deploy"
}

variable "registry" {
  description = "Where the images are, such as registry.example.org/friday."
  type        = string
}

variable "release" {
  description = "The tag of Friday's images there."
  type        = string
  default     = "0.1.0"
}

module "swarm" {
  source = "../../modules/swarm"

  # To replace a machine, give it another name here and its new address: the new one joins before the old one leaves.
  hosts = { for number, address in var.addresses : "manager-${number + 1}" => {
    docker_host       = "ssh://${var.user}@${address}"
    advertise_address = address
    role              = "manager"
    labels            = number == 0 ? tomap({ "friday.state" = "here" }) : tomap({})
  } }
}

module "platform" {
  source = "../../modules/platform"

  nodes          = module.swarm.nodes
  secrets_folder = "~/.config/friday-swarm"
  registry_auth  = true
  board_port     = 7443
  images = {
    controller = "${var.registry}/friday:${var.release}"
    agent      = "${var.registry}/friday-agent:${var.release}"
    proxy      = "${var.registry}/friday-proxy:${var.release}"
    pipeline   = "${var.registry}/tweets-pipeline:${var.release}"
    producer   = "${var.registry}/tweets-producer:${var.release}"
    worker     = "${var.registry}/tweets-worker:${var.release}"
  }
}

output "proxy" {
  value = module.platform.proxy
}

output "board" {
  value = module.platform.board
}

output "grafana" {
  value = module.platform.grafana
}

output "friday" {
  value = module.platform.friday
}
