variable "name" {
  description = "What this module calls its nodes by, in their label `friday.host`. Two modules may share one swarm under two names."
  type        = string
  default     = "friday"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,31}$", var.name))
    error_message = "name must be 1 to 32 small letters, digits and hyphens, and begin with a letter or a digit; it is ${jsonencode(var.name)}."
  }
}

variable "hosts" {
  description = "The machines by name: where the engine is commanded (`unix:///path` or `ssh://user@host:port`), the IP address at which the other nodes find it, `manager` or `worker`, and node labels."
  type = map(object({
    docker_host       = string
    advertise_address = string
    role              = optional(string, "worker")
    labels            = optional(map(string), {})
  }))
  nullable = false

  validation {
    condition     = alltrue([for key in keys(var.hosts) : can(regex("^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$", key))])
    error_message = "the names of hosts must be letters, digits, hyphens, dots and underscores, 63 at most; these are not: ${join(", ", [for key in keys(var.hosts) : jsonencode(key) if !can(regex("^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$", key))])}."
  }

  validation {
    condition     = alltrue([for host in values(var.hosts) : can(regex("^(unix:///[^\\s|]+|ssh://[^\\s|/]+)$", host.docker_host))])
    error_message = "docker_host must be unix:///path/to/docker.sock or ssh://user@host or ssh://user@host:port; wrong for ${join(", ", [for key, host in var.hosts : key if !can(regex("^(unix:///[^\\s|]+|ssh://[^\\s|/]+)$", host.docker_host))])}."
  }

  validation {
    condition     = length(distinct(values(var.hosts)[*].docker_host)) == length(var.hosts)
    error_message = "each host needs a docker_host of its own: the same engine cannot be two nodes."
  }

  validation {
    condition     = alltrue([for host in values(var.hosts) : can(cidrhost("${host.advertise_address}/32", 0)) || can(cidrhost("${host.advertise_address}/128", 0))])
    error_message = "advertise_address must be an IP address, such as 10.0.0.11; wrong for ${join(", ", [for key, host in var.hosts : key if !can(cidrhost("${host.advertise_address}/32", 0)) && !can(cidrhost("${host.advertise_address}/128", 0))])}."
  }

  validation {
    condition     = length(distinct(values(var.hosts)[*].advertise_address)) == length(var.hosts)
    error_message = "each host needs an advertise_address of its own."
  }

  validation {
    condition     = alltrue([for host in values(var.hosts) : contains(["manager", "worker"], host.role)])
    error_message = "role must be manager or worker; wrong for ${join(", ", [for key, host in var.hosts : key if !contains(["manager", "worker"], host.role)])}."
  }

  validation {
    condition     = anytrue([for host in values(var.hosts) : host.role == "manager"])
    error_message = "a swarm needs at least one host with role = \"manager\"; three bear the loss of one."
  }

  validation {
    condition = alltrue(flatten([for host in values(var.hosts) : [for name, value in host.labels :
      can(regex("^[a-zA-Z0-9][a-zA-Z0-9_./-]{0,126}$", name)) && can(regex("^[a-zA-Z0-9_./:@-]{0,255}$", value))
    ]]))
    error_message = "names and values of labels must be letters, digits and . _ / -, values also : and @."
  }

  validation {
    condition     = alltrue(flatten([for host in values(var.hosts) : [for name in keys(host.labels) : !contains(["friday.host", "friday.docker-host", "friday.labels", "friday.draining"], name)]]))
    error_message = "the labels friday.host, friday.docker-host, friday.labels and friday.draining are this module's own."
  }
}

variable "heartbeat" {
  description = "How often nodes say that they are alive; one is down after three missed beats. A number and `s` or `m`, at least `2s`: when the leader changes, nodes are waited for six beats, and may need eight seconds."
  type        = string
  default     = "5s"
  nullable    = false

  validation {
    condition     = can(regex("^([2-9]|[1-9][0-9]+)s$|^[1-9][0-9]*m$", var.heartbeat))
    error_message = "heartbeat must be a whole number with s or m, at least 2s; it is ${jsonencode(var.heartbeat)}."
  }
}

variable "wait_seconds" {
  description = "Longest wait for a node to join, to change its role or to leave, in seconds."
  type        = number
  default     = 120
  nullable    = false

  validation {
    condition     = var.wait_seconds >= 10 && var.wait_seconds <= 3600 && floor(var.wait_seconds) == var.wait_seconds
    error_message = "wait_seconds must be a whole number from 10 to 3600."
  }
}

variable "drain_seconds" {
  description = "Longest wait for the tasks of a node that is removed to end, in seconds."
  type        = number
  default     = 300
  nullable    = false

  validation {
    condition     = var.drain_seconds >= 10 && var.drain_seconds <= 3600 && floor(var.drain_seconds) == var.drain_seconds
    error_message = "drain_seconds must be a whole number from 10 to 3600."
  }
}
