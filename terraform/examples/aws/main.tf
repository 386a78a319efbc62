# Machines of EC2 as hosts of the swarm. Checked by format only: the provider has to be downloaded, and an account be paid.
# The machines' host keys are new to your ssh: say `StrictHostKeyChecking accept-new` for them in its configuration.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.0"
    }
  }
}

variable "key_name" {
  description = "The EC2 key pair whose private key your ssh uses."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets for the managers, best one in each availability zone."
  type        = list(string)
}

variable "admin_cidr" {
  description = "From where Terraform runs: who may come in by ssh and see the board."
  type        = string
}

variable "registry" {
  description = "Where the images are, such as registry.example.org/friday."
  type        = string
}

data "aws_subnet" "first" {
  id = var.subnet_ids[0]
}

data "aws_ami" "debian" {
  most_recent = true
  owners      = ["136693071363"] # Debian

  filter {
    name   = "name"
    values = ["debian-12-amd64-*"]
  }
}

resource "aws_security_group" "swarm" {
  name_prefix = "friday-swarm-"
  vpc_id      = data.aws_subnet.first.vpc_id

  ingress {
    description = "Users"
    from_port   = 8080
    to_port     = 8080
    protocol    = "tcp"
    cidr_blocks = ["0.0.0.0/0"]
  }

  dynamic "ingress" {
    for_each = { ssh = 22, board = 7443 }
    content {
      description = ingress.key
      from_port   = ingress.value
      to_port     = ingress.value
      protocol    = "tcp"
      cidr_blocks = [var.admin_cidr]
    }
  }

  # The swarm's own: 2377/tcp, 7946/tcp and udp, 4789/udp.
  ingress {
    description = "Nodes among each other"
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    self        = true
  }

  egress {
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }
}

resource "aws_instance" "manager" {
  count                       = 3
  ami                         = data.aws_ami.debian.id
  instance_type               = "t3.medium"
  key_name                    = var.key_name
  subnet_id                   = var.subnet_ids[count.index % length(var.subnet_ids)]
  vpc_security_group_ids      = [aws_security_group.swarm.id]
  associate_public_ip_address = true

  # The engine, and its group for the account that ssh uses.
  user_data = <<-END
    #!/bin/sh
    apt-get update && apt-get install --yes docker.io && usermod --append --groups docker admin
  END

  # Done when the engine answers.
  provisioner "remote-exec" {
    inline = ["cloud-init status --wait", "sg docker -c 'docker info' >/dev/null"]

    connection {
      type  = "ssh"
      host  = self.public_ip
      user  = "admin"
      agent = true
    }
  }

  tags = { Name = "friday-manager-${count.index + 1}" }
}

module "swarm" {
  source = "../../modules/swarm"

  hosts = { for number, machine in aws_instance.manager : "manager-${number + 1}" => {
    docker_host       = "ssh://admin@${machine.public_ip}"
    advertise_address = machine.private_ip
    role              = "manager"
    labels            = number == 0 ? tomap({ "friday.state" = "here" }) : tomap({})
  } }
}

module "platform" {
  source = "../../modules/platform"

  nodes          = { for name, node in module.swarm.nodes : name => merge(node, { address = aws_instance.manager[index(sort(keys(module.swarm.nodes)), name)].public_ip }) }
  secrets_folder = "~/.config/friday-swarm"
  registry_auth  = true
  board_port     = 7443
  images = {
    controller = "${var.registry}/friday:0.1.0"
    agent      = "${var.registry}/friday-agent:0.1.0"
    proxy      = "${var.registry}/friday-proxy:0.1.0"
    pipeline   = "${var.registry}/tweets-pipeline:0.1.0"
    producer   = "${var.registry}/tweets-producer:0.1.0"
    worker     = "${var.registry}/tweets-worker:0.1.0"
  }
}

output "proxy" {
  value = module.platform.proxy
}

output "board" {
  value = module.platform.board
}
