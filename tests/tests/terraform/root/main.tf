# What the tests apply: both modules, on the engines of a lab.

terraform {
  required_version = ">= 1.9"
}

variable "hosts" {
  type = map(object({
    docker_host       = string
    advertise_address = string
    role              = string
    labels            = map(string)
  }))
}

variable "with_platform" {
  type = bool
}

variable "images" {
  type = map(string)
}

variable "parts" {
  type = set(string)
}

variable "docker_socket" {
  type = string
}

variable "secrets_folder" {
  type = string
}

variable "secrets_revision" {
  type = string
}

module "swarm" {
  source    = "../../../../terraform/modules/swarm"
  hosts     = var.hosts
  heartbeat = "2s"
}

module "platform" {
  count  = var.with_platform ? 1 : 0
  source = "../../../../terraform/modules/platform"

  nodes            = module.swarm.nodes
  secrets_folder   = var.secrets_folder
  secrets_revision = var.secrets_revision
  images           = var.images
  parts            = var.parts
  docker_socket    = var.docker_socket
  resolve_images   = "never"
  board_port       = 7443
  wait_seconds     = 120
  tweets_rate      = 50
}

output "proxy" {
  value = var.with_platform ? module.platform[0].proxy : {}
}

output "board" {
  value = var.with_platform ? module.platform[0].board : null
}
