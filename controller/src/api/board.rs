//! The board: one page, no other host needed. It reads the API like anyone else.

use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};

/// What the page may do: its own script and style, and talk to this address. Nothing inline, nothing from elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A part of the page. It is not kept: after an update of the controller all parts are of the same version.
fn part(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, text).into_response()
}

/// The page.
pub async fn page() -> Response {
    part("text/html; charset=utf-8", include_str!("board/page.html"))
}

/// How it looks.
pub async fn style() -> Response {
    part("text/css; charset=utf-8", include_str!("board/board.css"))
}

/// What it does.
pub async fn script() -> Response {
    part(
        "text/javascript; charset=utf-8",
        include_str!("board/board.js"),
    )
}

/// How it draws and words what it knows: pure functions.
pub async fn drawing() -> Response {
    part(
        "text/javascript; charset=utf-8",
        include_str!("board/board-draw.js"),
    )
}
