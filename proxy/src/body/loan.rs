//! A body that is lent to a connection of HTTP/2: if the endpoint says that it did nothing with the request, the body is
//! taken back and sent again.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{ClientFault, Upload, UploadWatch};
use crate::lock;
use crate::upstream::Seat;

/// Most of a body that is kept until the head of its answer: more than most calls of gRPC have in all, and with all the
/// requests of a connection some megabytes at worst.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// A body on loan, as both sides have it: the connection, and whoever may take it back.
#[derive(Clone)]
pub(crate) struct Loan {
    /// `None` once it was taken back.
    lent: Arc<Mutex<Option<Lent>>>,
    watch: Arc<UploadWatch>,
}

struct Lent {
    upload: Box<Upload>,
    /// What went by, to go by again; `None` once that is not possible any more.
    passed: Option<Vec<u8>>,
    /// A request takes its place on a connection until its body has gone by, also when it was answered before.
    _seat: Arc<Seat>,
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").finish_non_exhaustive()
    }
}

impl Loan {
    pub(super) fn new(upload: Box<Upload>, seat: &Arc<Seat>) -> Self {
        let watch = Arc::clone(&upload.watch);
        let lent = Lent {
            upload,
            passed: Some(Vec::new()),
            _seat: Arc::clone(seat),
        };
        Self {
            lent: Arc::new(Mutex::new(Some(lent))),
            watch,
        }
    }

    pub(super) fn watch(&self) -> &Arc<UploadWatch> {
        &self.watch
    }

    /// It is not wanted back: nothing more of it need be kept.
    pub(crate) fn settle(&self) {
        if let Some(lent) = &mut *lock(&self.lent) {
            lent.passed = None;
        }
    }

    /// The body as it was before any of it went by; `None` if too much did. Whoever had it on loan has nothing more of it.
    pub(crate) fn take_back(self) -> Option<super::Outgoing> {
        let lent = lock(&self.lent).take();
        let Lent { upload, passed, .. } = lent?;
        Some(super::Outgoing::Stream(upload.rewound(passed?)))
    }

    pub(super) fn poll_frame(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientFault>>> {
        let mut lent = lock(&self.lent);
        let Some(lent) = &mut *lent else {
            return Poll::Ready(Some(Err(ClientFault::Broken)));
        };
        let frame = lent.upload.poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(passed)) = (&frame, &mut lent.passed) {
            match frame.data_ref() {
                Some(data) if passed.len() + data.len() <= KEPT_BYTES_MAX => {
                    passed.extend_from_slice(data);
                }
                // Trailers would have to go by again, too: hardly a request has any.
                Some(_) | None => lent.passed = None,
            }
        }
        frame
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let lent = lock(&self.lent);
        lent.as_ref().is_none_or(|lent| lent.upload.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let lent = lock(&self.lent);
        lent.as_ref()
            .map_or_else(SizeHint::default, |lent| lent.upload.size_hint())
    }
}
