# A Docker Swarm of the hosts in `hosts`, made or adopted.
#
# Three things, because what is done at an end of something must not be done at each change of it: `host` is there to be read
# in a plan, `swarm` begins and ends, `nodes` is done again whenever a host has changed. What is true of a node is in the
# swarm itself, in labels; the state has nothing that `hosts` does not say. Tokens are asked for by the script that uses them.

locals {
  managers = sort([for key, host in var.hosts : key if host.role == "manager"])

  # A line for each host, for scripts/swarm.
  lines = join("\n", [for key, host in var.hosts : join("|", [
    key, host.role, host.docker_host, host.advertise_address,
    join(",", [for name, value in host.labels : "${name}=${value}"]),
  ])])
}

check "number_of_managers" {
  assert {
    condition     = length(local.managers) % 2 == 1
    error_message = "${length(local.managers)} managers bear the loss of no more of them than ${length(local.managers) - 1} do: an odd number is better."
  }
}

resource "terraform_data" "host" {
  for_each = var.hosts
  input    = each.value
}

# The swarm itself. Its input follows the hosts in place; destroying it takes apart what is there then.
resource "terraform_data" "swarm" {
  input = {
    name          = var.name
    hosts         = local.lines
    wait_seconds  = tostring(var.wait_seconds)
    drain_seconds = tostring(var.drain_seconds)
  }

  provisioner "local-exec" {
    interpreter = ["bash", "${path.module}/scripts/swarm"]
    command     = "found"
    environment = {
      SWARM_NAME         = self.input.name
      SWARM_HOSTS        = self.input.hosts
      SWARM_WAIT_SECONDS = self.input.wait_seconds
    }
  }

  provisioner "local-exec" {
    when        = destroy
    interpreter = ["bash", "${path.module}/scripts/swarm"]
    command     = "dissolve"
    environment = {
      SWARM_NAME          = self.input.name
      SWARM_HOSTS         = self.input.hosts
      SWARM_WAIT_SECONDS  = self.input.wait_seconds
      SWARM_DRAIN_SECONDS = self.input.drain_seconds
    }
  }
}

# Who is in it, as what, and with which labels. New ones join before old ones leave.
resource "terraform_data" "nodes" {
  triggers_replace = {
    swarm     = terraform_data.swarm.id
    hosts     = var.hosts
    heartbeat = var.heartbeat
  }
  depends_on = [terraform_data.host]

  provisioner "local-exec" {
    interpreter = ["bash", "${path.module}/scripts/swarm"]
    command     = "converge"
    environment = {
      SWARM_NAME          = var.name
      SWARM_HOSTS         = local.lines
      SWARM_HEARTBEAT     = var.heartbeat
      SWARM_WAIT_SECONDS  = tostring(var.wait_seconds)
      SWARM_DRAIN_SECONDS = tostring(var.drain_seconds)
    }
  }
}
