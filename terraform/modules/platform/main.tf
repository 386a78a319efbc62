# Friday on a swarm: the stack of swarm/, as far as `parts` say, deployed and waited for.
#
# `stack` begins and ends; `deploy` is done again whenever something of the stack has changed. The service under progressive
# delivery is in a document of its own, which is deployed while there is no such service and never after: from then on its
# releases are Friday's, and a second writer would put back an old image in the middle of one.

locals {
  folder = abspath("${path.module}/../../../swarm")
  secret = abspath(pathexpand(var.secrets_folder))
  file   = yamldecode(file("${local.folder}/stack.yml"))

  engines = join("\n", values(var.nodes)[*].docker_host)

  managers = sort([for name, node in var.nodes : name if node.role == "manager"])
  state    = one([for name, node in var.nodes : name if node.role == "manager" && lookup(node.labels, "friday.state", "") == "here"])

  # Which services a part is made of; what is in none of them is always there.
  services_of = {
    agent        = ["agent"]
    alertmanager = ["alertmanager"]
    grafana      = ["grafana"]
    prometheus   = ["prometheus"]
    worker       = ["tweets-worker"]
    pipeline     = ["producer", "subscriber", "ingest", "feeder", "sink", "jobs", "stats", "kafka", "postgres"]
  }
  left_out = flatten([for part, names in local.services_of : names if !contains(var.parts, part)])
  released = [for name in local.services_of.worker : name if !contains(local.left_out, name)]
  names    = [for name in keys(local.file.services) : name if !contains(local.left_out, name) && !contains(local.released, name)]

  # YAML has two minds about 0444; Terraform reads it as a decimal number, and Docker means an octal one.
  services = { for name, service in local.file.services : name => merge(
    service,
    { for kind in ["configs", "secrets"] : kind => [for use in service[kind] : merge(use, { mode = parseint(tostring(use.mode), 8) })] if can(service[kind]) },
    { for key in ["command"] : key => [for word in service.command : word if contains(var.parts, "prometheus") || !startswith(word, "--prometheus=")] if name == "controller" },
    { for key in ["ports"] : key => concat(try(service.ports, []), [{ target = 7070, published = var.board_port, protocol = "tcp", mode = "host" }]) if name == "controller" && var.board_port != null },
  ) if !contains(local.left_out, name) }

  used = { for kind in ["configs", "secrets"] : kind => distinct(flatten([
    for name in local.names : [for use in try(local.services[name][kind], []) : use.source]
  ])) }

  # Neither a config nor a secret can be changed under its name, so the name has the content's hash: of files of the project
  # here, of those in the folder of secrets when they are deployed.
  paths = { for name, config in local.file.configs : name => (
    name == "friday" && var.service_file != null ? abspath(coalesce(var.service_file, "-")) : "${local.folder}/${config.file}"
  ) if !strcontains(config.file, "FRIDAY_SECRETS") && contains(local.used.configs, name) }
  from_folder = { for name, entry in merge(local.file.configs, local.file.secrets) : name => basename(entry.file)
  if strcontains(entry.file, "FRIDAY_SECRETS") && contains(concat(local.used.configs, local.used.secrets), name) }
  declared = { for kind in ["configs", "secrets"] : kind => { for name in local.used[kind] : name => {
    file = contains(keys(local.paths), name) ? "$${FILE_${name}}" : "$${FRIDAY_SECRETS}/${local.from_folder[name]}"
    name = "friday_${name}_${contains(keys(local.paths), name) ? substr(filesha256(local.paths[name]), 0, 12) : "$${HASH_${name}}"}"
  } } }

  # Whose a volume is can be seen on it when its host is no member of the swarm any more.
  volumes = { for name, volume in local.file.volumes : name => merge(try(merge(volume), {}), { labels = { "friday.platform" = "$${PLATFORM_ID}" } }) }

  stack = jsonencode(merge(
    { for key, value in local.file : key => value if !contains(["services", "configs", "secrets", "volumes"], key) },
    { services = { for name in local.names : name => local.services[name] }, configs = local.declared.configs, secrets = local.declared.secrets, volumes = local.volumes },
  ))
  first = jsonencode(merge(
    { for key, value in local.file : key => value if !contains(["services", "configs", "secrets"], key) },
    { services = { for name in local.released : name => local.services[name] } },
  ))

  # What the stack file leaves open.
  variables = {
    controller = "FRIDAY_IMAGE", agent = "FRIDAY_AGENT_IMAGE", proxy = "FRIDAY_PROXY_IMAGE", worker = "WORKER_IMAGE", pipeline = "PIPELINE_IMAGE"
    producer   = "PRODUCER_IMAGE", kafka = "KAFKA_IMAGE", postgres = "POSTGRES_IMAGE", prometheus = "PROMETHEUS_IMAGE", alertmanager = "ALERTMANAGER_IMAGE", grafana = "GRAFANA_IMAGE"
  }
  environment = merge({ for part, image in var.images : local.variables[part] => image if part != "worker" }, {
    FRIDAY_PORT   = tostring(var.port)
    GRAFANA_PORT  = tostring(var.grafana_port)
    TWEETS_RATE   = tostring(var.tweets_rate)
    PRODUCERS     = var.tweets_from == "producer" ? "1" : "0"
    SUBSCRIBERS   = var.tweets_from == "x" ? "1" : "0"
    DOCKER_SOCKET = var.docker_socket
  })
}

# The stack as a whole. Its input follows the variables in place; destroying it removes what is there then.
resource "terraform_data" "stack" {
  input = {
    docker_host  = var.nodes[local.managers[0]].docker_host
    engines      = local.engines
    secrets      = var.secrets_folder
    keep_data    = tostring(var.keep_data)
    wait_seconds = tostring(var.wait_seconds)
  }

  provisioner "local-exec" {
    when        = destroy
    interpreter = ["bash", "${path.module}/scripts/platform"]
    command     = "remove"
    environment = {
      DOCKER_HOST           = self.input.docker_host
      PLATFORM_ENGINES      = self.input.engines
      PLATFORM_ID           = self.id
      PLATFORM_KEEP         = self.input.keep_data
      PLATFORM_WAIT_SECONDS = self.input.wait_seconds
      FRIDAY_SECRETS        = self.input.secrets
    }
  }
}

# Every engine that was ever part of it is written down, for a destroy after some have left.
resource "terraform_data" "engines" {
  triggers_replace = {
    stack   = terraform_data.stack.id
    engines = local.engines
  }

  provisioner "local-exec" {
    interpreter = ["bash", "${path.module}/scripts/platform"]
    command     = "remember"
    environment = {
      DOCKER_HOST           = var.nodes[local.managers[0]].docker_host
      PLATFORM_ENGINES      = local.engines
      PLATFORM_WAIT_SECONDS = tostring(var.wait_seconds)
      FRIDAY_SECRETS        = local.secret
    }
  }
}

resource "terraform_data" "deploy" {
  triggers_replace = {
    stack       = terraform_data.stack.id
    document    = sha256(local.stack)
    released    = local.released
    environment = local.environment
    secrets     = var.secrets_revision
    board       = var.board_port == null ? "" : var.nodes[local.state].address
  }
  depends_on = [terraform_data.engines]

  provisioner "local-exec" {
    interpreter = ["bash", "${path.module}/scripts/platform"]
    command     = "deploy"
    environment = merge(
      local.environment,
      { for name, path in local.paths : "FILE_${name}" => path },
      { for image in [lookup(var.images, "worker", "")] : "WORKER_IMAGE" => image if image != "" },
      {
        DOCKER_HOST           = var.nodes[local.managers[0]].docker_host
        FRIDAY_SECRETS        = local.secret
        FRIDAY_IMAGE          = lookup(var.images, "controller", regex(":-(.*)}$", local.file.services.controller.image)[0])
        PLATFORM_ADDRESS      = var.board_port == null ? "" : var.nodes[local.state].address
        PLATFORM_FOLDER       = local.folder
        PLATFORM_ID           = terraform_data.stack.id
        PLATFORM_STACK        = local.stack
        PLATFORM_FIRST        = local.first
        PLATFORM_SERVICES     = join(" ", local.names)
        PLATFORM_RELEASED     = join(" ", local.released)
        PLATFORM_SECRETS      = join("\n", [for name, file in local.from_folder : "${name}=${file}"])
        PLATFORM_RESOLVE      = var.resolve_images
        PLATFORM_AUTH         = var.registry_auth ? "yes" : ""
        PLATFORM_WAIT_SECONDS = tostring(var.wait_seconds)
      },
    )
  }
}
