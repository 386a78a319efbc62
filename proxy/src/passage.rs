//! What a trace says of a request's way through this proxy: one span from its head to the end of its answer, with all attempts
//! in it. Names and attributes are those of OpenTelemetry's semantic conventions for HTTP, and some of our own in `friday.…`.

use std::borrow::Cow;

use friday_traces::{Kind, Span, TraceParent, Tracer};
use http::request::Parts;
use http::{Method, StatusCode, Version};

use crate::access_log::{End, PATH_BYTES_MAX};
use crate::headers::{self, HOST_BYTES_MAX};
use crate::refusal::Refusal;
use crate::routes::Place;

/// The span of a request. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Passage {
    span: Span,
    attempts: i64,
    /// Where it was sent last.
    endpoint: Option<String>,
    /// Whether stable answers for the canary.
    is_shielded: bool,
    status: Option<StatusCode>,
    end: &'static str,
}

impl Passage {
    /// Begins the span of the request with that head, if its trace is recorded. From here on the head says to whoever gets it
    /// that it comes from this span.
    pub(crate) fn begin(tracer: &Tracer, head: &mut Parts, scheme: &str) -> Option<Box<Self>> {
        let mut span = tracer.begin(&mut head.headers, Kind::Server, "HTTP")?;
        let method = method_of(&head.method);
        if method != "_OTHER" {
            span.rename(method);
        }
        span.set("http.request.method", method);
        span.set("url.scheme", scheme.to_owned());
        // Heads that are to be refused have a span too: what a client writes is cut, so that spans that wait stay small.
        let host = headers::host(head);
        let end = host.floor_char_boundary(HOST_BYTES_MAX);
        span.set("server.address", host[..end].to_owned());
        let path = head.uri.path();
        let end = path.floor_char_boundary(PATH_BYTES_MAX);
        span.set("url.path", path[..end].to_owned());
        let version = match head.version {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        };
        span.set("network.protocol.version", version);
        Some(Box::new(Self {
            span,
            attempts: 0,
            endpoint: None,
            is_shielded: false,
            status: None,
            end: "client_gone",
        }))
    }

    /// Where it stands.
    pub(crate) fn at(&self) -> TraceParent {
        self.span.at()
    }

    /// It was routed to that place, and is counted there.
    pub(crate) fn routed(&mut self, method: &Method, place: &Place) {
        let method = match method_of(method) {
            "_OTHER" => "HTTP",
            method => method,
        };
        self.span.rename(format!("{method} {}", place.route));
        self.span.set("friday.service", place.route.to_string());
        self.span.set("friday.arm", place.arm.as_str());
        self.span.set("friday.release", place.release.to_string());
    }

    /// It is sent there; `is_shielded`: in place of the canary.
    pub(crate) fn sent(&mut self, endpoint: &str, is_shielded: bool) {
        self.attempts += 1;
        self.endpoint = Some(endpoint.to_owned());
        self.is_shielded = is_shielded;
    }

    /// An upstream answered it.
    pub(crate) fn answered(&mut self, status: StatusCode, end: End) {
        self.status = Some(status);
        self.end = end.as_str();
        match end {
            End::BrokenOff => self.span.fail("broken_off"),
            End::Ok | End::ClientGone if status.is_server_error() => {
                self.span.fail(Cow::Owned(status.as_str().to_owned()));
            }
            End::Ok | End::ClientGone => {}
        }
    }

    /// The proxy answered it.
    pub(crate) fn refused(&mut self, refusal: Refusal) {
        let status = refusal.status();
        self.status = Some(status);
        self.end = "refused";
        if status.is_server_error() {
            self.span.fail(refusal.code());
        } else {
            // The client's fault: no error of a server's, by the conventions.
            self.span.set("friday.refusal", refusal.code());
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(status) = self.status {
            self.span
                .set("http.response.status_code", i64::from(status.as_u16()));
        }
        self.span.set("friday.attempts", self.attempts);
        self.span.set("friday.shielded", self.is_shielded);
        self.span.set("friday.end", self.end);
        if let Some(endpoint) = self.endpoint.take() {
            self.span.set("friday.endpoint", endpoint);
        }
    }
}

/// The methods that the conventions know; any other could be anything.
fn method_of(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    let known = KNOWN.into_iter().find(|known| *known == method.as_str());
    known.unwrap_or("_OTHER")
}
