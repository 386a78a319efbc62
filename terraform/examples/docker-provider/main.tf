# A service of your own beside Friday, by the provider kreuzwerker/docker. Checked by format only: the provider has to be
# downloaded. The provider makes the service; its image is Friday's from then on, so Terraform does not look at it again.

terraform {
  required_version = ">= 1.9"
  required_providers {
    docker = {
      source  = "kreuzwerker/docker"
      version = "~> 3.0"
    }
  }
}

module "swarm" {
  source = "../../modules/swarm"

  hosts = {
    here = {
      docker_host       = "unix:///var/run/docker.sock"
      advertise_address = "127.0.0.1"
      role              = "manager"
      labels            = { "friday.state" = "here" }
    }
  }
}

module "platform" {
  source = "../../modules/platform"

  nodes          = module.swarm.nodes
  secrets_folder = "~/.config/friday-swarm"
  parts          = ["agent", "prometheus"]
  service_file   = "${path.module}/friday.yml"
  resolve_images = "never"
}

provider "docker" {
  host = module.swarm.docker_host
}

data "docker_network" "mesh" {
  name       = "friday_mesh"
  depends_on = [module.platform]
}

resource "docker_service" "shop" {
  name = "shop"

  task_spec {
    container_spec {
      image             = "registry.example.org/shop:v1"
      stop_grace_period = "15s"
      healthcheck {
        test     = ["CMD", "/shop", "health"]
        interval = "2s"
        timeout  = "3s"
        retries  = 3
      }
    }
    networks_advanced {
      name = data.docker_network.mesh.id
    }
  }

  mode {
    replicated {
      replicas = 2
    }
  }

  endpoint_spec {
    mode = "dnsrr"
  }

  # What a release writes: the image, a label of the containers, labels of the service.
  lifecycle {
    ignore_changes = [task_spec[0].container_spec[0].image, task_spec[0].container_spec[0].labels, labels]
  }
}
