//! A weighted reverse proxy.
