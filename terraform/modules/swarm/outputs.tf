output "nodes" {
  description = "The hosts as the platform module wants them, when all of them are in the swarm."
  value = { for key, host in var.hosts : key => {
    docker_host = host.docker_host
    address     = host.advertise_address
    role        = host.role
    labels      = host.labels
  } }
  depends_on = [terraform_data.nodes]
}

output "docker_host" {
  description = "Where a manager of the swarm is commanded: the value for DOCKER_HOST."
  value       = var.hosts[local.managers[0]].docker_host
  depends_on  = [terraform_data.nodes]
}

output "managers" {
  description = "The names of the managers."
  value       = local.managers
  depends_on  = [terraform_data.nodes]
}
