variable "nodes" {
  description = "The nodes of the swarm by name, as the swarm module has them in its output `nodes`. One manager has the label `friday.state = \"here\"`: controller, databases and Prometheus keep their data there."
  type = map(object({
    docker_host = string
    address     = string
    role        = string
    labels      = optional(map(string), {})
  }))
  nullable = false

  validation {
    condition     = anytrue([for node in values(var.nodes) : node.role == "manager"])
    error_message = "nodes must have a manager: only managers take orders."
  }

  validation {
    condition     = length([for node in values(var.nodes) : node if node.role == "manager" && lookup(node.labels, "friday.state", "") == "here"]) == 1
    error_message = "exactly one manager must have the label friday.state = \"here\", because data is kept there; set it in labels of one of the hosts."
  }

  validation {
    condition     = length([for node in values(var.nodes) : node if node.role != "manager" && lookup(node.labels, "friday.state", "") == "here"]) == 0
    error_message = "the label friday.state = \"here\" is for a manager: the controller commands the swarm from where its data is."
  }
}

variable "secrets_folder" {
  description = "Folder on the machine where Terraform runs for passwords, tokens and keys. What is missing in it is made; files of your own are taken: `postgres_password`, `ingest_clients`, `stats_token`, `x_token`, `ca.pem`, `controller.pem`, `controller.key`. Keep it: no secret is in the state."
  type        = string
  nullable    = false

  validation {
    condition     = length(trimspace(var.secrets_folder)) > 0 && !can(regex("[\\n\\r]", var.secrets_folder))
    error_message = "secrets_folder must be the path of a folder, such as ~/.config/friday-swarm."
  }
}

variable "secrets_revision" {
  description = "Any text; another one deploys again, with what is in `secrets_folder` then. Terraform does not see changes of secrets, since not even their hashes are in its state."
  type        = string
  default     = "1"
  nullable    = false
}

variable "images" {
  description = "Images by part: `controller`, `agent`, `proxy`, `worker`, `pipeline`, `producer`, `kafka`, `postgres`, `prometheus`, `alertmanager`, `grafana`. Others are as swarm/stack.yml says. The worker's is for its first start; after that releases are `friday deploy`'s."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length(setsubtract(keys(var.images), ["controller", "agent", "proxy", "worker", "pipeline", "producer", "kafka", "postgres", "prometheus", "alertmanager", "grafana"])) == 0
    error_message = "images has unknown parts: ${join(", ", setsubtract(keys(var.images), ["controller", "agent", "proxy", "worker", "pipeline", "producer", "kafka", "postgres", "prometheus", "alertmanager", "grafana"]))}; expected controller, agent, proxy, worker, pipeline, producer, kafka, postgres, prometheus, alertmanager or grafana."
  }

  validation {
    condition     = alltrue([for image in values(var.images) : can(regex("^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$", image))])
    error_message = "these are no names of images: ${join(", ", [for image in values(var.images) : jsonencode(image) if !can(regex("^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$", image))])}."
  }
}

variable "parts" {
  description = "What runs beside controller and proxies: `agent`, `prometheus`, `alertmanager`, `grafana`, `worker` (the service that is released) and `pipeline` (Kafka, PostgreSQL and what moves tweets between them)."
  type        = set(string)
  default     = ["agent", "alertmanager", "grafana", "pipeline", "prometheus", "worker"]
  nullable    = false

  validation {
    condition     = length(setsubtract(var.parts, ["agent", "alertmanager", "grafana", "pipeline", "prometheus", "worker"])) == 0
    error_message = "parts may have agent, alertmanager, grafana, pipeline, prometheus and worker; unknown: ${join(", ", setsubtract(var.parts, ["agent", "alertmanager", "grafana", "pipeline", "prometheus", "worker"]))}."
  }

  validation {
    condition     = contains(var.parts, "worker") || !contains(var.parts, "pipeline")
    error_message = "the part pipeline needs the part worker: it feeds it."
  }
}

variable "service_file" {
  description = "The `friday.yml` of the service that is released; without it that of the worker in swarm/. A service of your own has to be on the network `friday_mesh`."
  type        = string
  default     = null

  validation {
    condition     = var.service_file == null ? true : fileexists(var.service_file)
    error_message = "the service_file ${var.service_file == null ? "" : var.service_file} is not there."
  }

  validation {
    condition     = var.service_file != null || contains(var.parts, "worker")
    error_message = "without the part worker name a service_file of your own: the controller would wait for a service that is not there."
  }
}

variable "port" {
  description = "Where users call, on every node."
  type        = number
  default     = 8080
  nullable    = false

  validation {
    condition     = var.port >= 1 && var.port <= 65535 && floor(var.port) == var.port
    error_message = "port must be a whole number from 1 to 65535."
  }
}

variable "board_port" {
  description = "Where the board and the API are published, by TLS, on the node with the data; without it they are in the swarm's network alone."
  type        = number
  default     = null

  validation {
    condition     = var.board_port == null ? true : var.board_port >= 1 && var.board_port <= 65535 && floor(var.board_port) == var.board_port && var.board_port != var.port
    error_message = "board_port must be a whole number from 1 to 65535, and another than port."
  }
}

variable "grafana_port" {
  description = "Where Grafana is published, if `parts` have it."
  type        = number
  default     = 3000
  nullable    = false

  validation {
    condition     = var.grafana_port >= 1 && var.grafana_port <= 65535 && floor(var.grafana_port) == var.grafana_port
    error_message = "grafana_port must be a whole number from 1 to 65535."
  }
}

variable "tweets_rate" {
  description = "How many tweets the producer makes in a second."
  type        = number
  default     = 200
  nullable    = false

  validation {
    condition     = var.tweets_rate >= 1 && var.tweets_rate <= 100000 && floor(var.tweets_rate) == var.tweets_rate
    error_message = "tweets_rate must be a whole number from 1 to 100000."
  }
}

variable "tweets_from" {
  description = "Where tweets come from: `producer` makes them up, `x` takes the filtered stream, with the bearer token in the file `x_token` of `secrets_folder`."
  type        = string
  default     = "producer"
  nullable    = false

  validation {
    condition     = contains(["producer", "x"], var.tweets_from)
    error_message = "tweets_from must be producer or x; it is ${jsonencode(var.tweets_from)}."
  }
}

variable "docker_socket" {
  description = "Where engines listen on their nodes, for controller, agents and Prometheus. May hold `{{.Node.Hostname}}`."
  type        = string
  default     = "/var/run/docker.sock"
  nullable    = false

  validation {
    condition     = can(regex("^/[^\\s]+$", var.docker_socket))
    error_message = "docker_socket must be an absolute path, such as /var/run/docker.sock."
  }
}

variable "resolve_images" {
  description = "Whether a registry is asked what a tag means: `always`, `changed` or `never`. `never` is for images that were loaded into every engine."
  type        = string
  default     = "always"
  nullable    = false

  validation {
    condition     = contains(["always", "changed", "never"], var.resolve_images)
    error_message = "resolve_images must be always, changed or never; it is ${jsonencode(var.resolve_images)}."
  }
}

variable "registry_auth" {
  description = "Whether the nodes are given what `docker login` wrote down here."
  type        = bool
  default     = false
  nullable    = false
}

variable "keep_data" {
  description = "Whether a destroy leaves volumes and made secrets where they are. A later apply finds them again."
  type        = bool
  default     = false
  nullable    = false
}

variable "wait_seconds" {
  description = "Longest wait for everything to answer, and for everything to be gone, in seconds."
  type        = number
  default     = 300
  nullable    = false

  validation {
    condition     = var.wait_seconds >= 10 && var.wait_seconds <= 3600 && floor(var.wait_seconds) == var.wait_seconds
    error_message = "wait_seconds must be a whole number from 10 to 3600."
  }
}
