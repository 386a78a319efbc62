//! What the proxy answers by itself: a status, a line of text, and a code in the header `x-friday-refusal`.

use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::body::Answer;

/// The header that tells an answer of the proxy from one of an upstream.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-friday-refusal");

/// Why the proxy answers by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// There is no table yet.
    NoTable,
    /// The request's target is none, or not one for its method.
    BadTarget,
    /// The request's target is longer than any service should need.
    TargetTooLong,
    /// The request names no host, or more than one, or what is none.
    BadHost,
    /// The body comes in a coding that we would have to undo.
    TransferCoding,
    /// No route takes the request.
    NoRoute,
    /// CONNECT: this is no forward proxy.
    Connecting,
    /// A head that is no HTTP; answered by the HTTP library.
    BadRequest,
    /// A head that is too long or has too many fields; mostly answered by the HTTP library.
    HeadTooLarge,
    /// A head that was begun and did not come to its end.
    HeadTimeout,
    /// The client does not take its answer.
    AnswerUnread,
    /// The client and the proxy did not agree on TLS.
    Tls,
    /// As many clients are connected as may be.
    Connections,
    /// As many requests to the route as it may have.
    InFlight,
    /// The request's body is longer than the route allows.
    BodyTooLarge,
    /// The client stopped sending the body it had begun.
    BodyTimeout,
    /// The client's body broke off; most likely nobody reads this answer.
    BodyBroken,
    /// The release has no endpoint.
    NoEndpoint,
    /// No endpoint took a connection.
    Connect,
    /// The upstream's connection broke before its answer.
    Reset,
    /// The upstream did not answer in time.
    Timeout,
    /// Nothing more came of an answer that was begun, or by an upgraded connection: it is given up.
    AnswerStopped,
}

impl Refusal {
    /// Every refusal.
    pub(crate) const ALL: [Self; 22] = [
        Self::NoTable,
        Self::BadTarget,
        Self::TargetTooLong,
        Self::BadHost,
        Self::TransferCoding,
        Self::NoRoute,
        Self::Connecting,
        Self::BadRequest,
        Self::HeadTooLarge,
        Self::HeadTimeout,
        Self::AnswerUnread,
        Self::Tls,
        Self::Connections,
        Self::InFlight,
        Self::BodyTooLarge,
        Self::BodyTimeout,
        Self::BodyBroken,
        Self::NoEndpoint,
        Self::Connect,
        Self::Reset,
        Self::Timeout,
        Self::AnswerStopped,
    ];

    /// The code in the header and in the metric.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::NoTable => "no_table",
            Self::BadTarget => "bad_target",
            Self::TargetTooLong => "target_too_long",
            Self::BadHost => "bad_host",
            Self::TransferCoding => "transfer_coding",
            Self::NoRoute => "no_route",
            Self::Connecting => "connect_method",
            Self::BadRequest => "bad_request",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::AnswerUnread => "answer_unread",
            Self::Tls => "tls",
            Self::Connections => "connections",
            Self::InFlight => "in_flight",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::BodyBroken => "body_broken",
            Self::NoEndpoint => "no_endpoint",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::AnswerStopped => "answer_stopped",
        }
    }

    /// The status of the answer.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::NoTable | Self::Connections | Self::InFlight | Self::NoEndpoint => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::Connecting | Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout | Self::HeadTimeout | Self::AnswerUnread => {
                StatusCode::REQUEST_TIMEOUT
            }
            Self::BodyBroken | Self::BadRequest | Self::Tls | Self::BadTarget | Self::BadHost => {
                StatusCode::BAD_REQUEST
            }
            Self::Connect | Self::Reset => StatusCode::BAD_GATEWAY,
            Self::Timeout | Self::AnswerStopped => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NoTable => "no route table yet: the controller has not sent one\n",
            Self::BadTarget => "the request's target is none for its method\n",
            Self::TargetTooLong => "the request's target is longer than 16 KiB\n",
            Self::BadHost => "the request names no host, or more than one, or what is none\n",
            Self::TransferCoding => "this proxy takes no transfer coding but chunked\n",
            Self::NoRoute => "no route takes this host and path\n",
            Self::Connecting => "this is no forward proxy: it does not take CONNECT\n",
            Self::BadRequest => "the request's head is no HTTP\n",
            Self::HeadTooLarge => "the request's head is too long\n",
            Self::HeadTimeout => "the request's head stopped coming\n",
            Self::AnswerUnread => "the answer was not taken\n",
            Self::Tls => "TLS is spoken here\n",
            Self::Connections => "as many clients are connected as this proxy takes\n",
            Self::InFlight => "as many requests are in flight as this route may have\n",
            Self::BodyTooLarge => "the request's body is longer than this route takes\n",
            Self::BodyTimeout => "the request's body stopped coming\n",
            Self::BodyBroken => "the request's body broke off\n",
            Self::NoEndpoint => "this release runs nowhere at present\n",
            Self::Connect => "no upstream took a connection\n",
            Self::Reset => "the upstream broke the connection before its answer\n",
            Self::Timeout => "the upstream did not answer in time\n",
            Self::AnswerStopped => "the upstream's answer stopped coming\n",
        }
    }

    /// Whether the client's next request on the connection cannot be trusted to begin where it seems to.
    fn ends_connection(self) -> bool {
        match self {
            Self::BadTarget
            | Self::TargetTooLong
            | Self::BadHost
            | Self::TransferCoding
            | Self::BadRequest
            | Self::HeadTooLarge
            | Self::HeadTimeout
            | Self::AnswerUnread
            | Self::Tls
            | Self::Connections
            | Self::BodyBroken
            | Self::AnswerStopped => true,
            Self::NoTable
            | Self::NoRoute
            | Self::Connecting
            | Self::InFlight
            | Self::BodyTooLarge
            | Self::BodyTimeout
            | Self::NoEndpoint
            | Self::Connect
            | Self::Reset
            | Self::Timeout => false,
        }
    }

    /// The whole answer in HTTP/1.1 and without a text, for a connection that is closed behind it, with further `fields`, each
    /// with its end of line.
    pub(crate) fn last_words(self, fields: &str) -> String {
        let status = self.status();
        format!(
            "HTTP/1.1 {} {}\r\n{HEADER}: {}\r\n{fields}connection: close\r\ncontent-length: 0\r\n\r\n",
            status.as_str(),
            status.canonical_reason().unwrap_or_default(),
            self.code()
        )
    }

    /// The whole answer.
    pub(crate) fn response(self) -> Response<Answer> {
        let mut response = Response::new(Answer::own(self.text()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(HEADER, HeaderValue::from_static(self.code()));
        if self.ends_connection() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response
    }
}
