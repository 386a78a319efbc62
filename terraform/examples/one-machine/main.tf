# Friday on this machine's engine, with images that were built here: swarm/build makes them (see the README).

terraform {
  required_version = ">= 1.9"
}

variable "address" {
  description = "The address of this machine; others may join it there later."
  type        = string
  default     = "127.0.0.1"
}

variable "images" {
  description = "Images by part; see the platform module."
  type        = map(string)
  default     = {}
}

variable "parts" {
  description = "What runs beside controller and proxy; see the platform module."
  type        = set(string)
  default     = ["agent", "alertmanager", "grafana", "pipeline", "prometheus", "worker"]
}

module "swarm" {
  source = "../../modules/swarm"

  hosts = {
    here = {
      docker_host       = "unix:///var/run/docker.sock"
      advertise_address = var.address
      role              = "manager"
      labels            = { "friday.state" = "here" }
    }
  }
}

module "platform" {
  source = "../../modules/platform"

  nodes          = module.swarm.nodes
  secrets_folder = "~/.config/friday-swarm"
  images         = var.images
  parts          = var.parts
  resolve_images = "never"
  board_port     = 7443
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
