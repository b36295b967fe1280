//! Asking the main loop for something, from any thread.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::api::{Action, ActionError, Answer};

/// What came of an action.
pub type Outcome = Result<Answer, ActionError>;

/// A request on its way to the main loop.
pub struct Request {
    /// What is asked for.
    pub action: Action,
    /// Who waits for what comes of it, if somebody does.
    pub answer: Option<SyncSender<Outcome>>,
}

/// A way to ask a running [`Vmm`](super::Vmm) for something, from any thread.
#[derive(Clone)]
pub struct Handle {
    requests: Sender<Request>,
    event: Arc<EventFd>,
}

impl Handle {
    /// A handle, and where its requests arrive.
    pub(super) fn new() -> std::io::Result<(Self, Receiver<Request>)> {
        let (requests, arrivals) = mpsc::channel();
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok((Self { requests, event }, arrivals))
    }

    /// Readable when a request has arrived.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Asks for an action and waits for what comes of it.
    ///
    /// # Errors
    /// The action's own, or that the VMM is ending.
    pub fn call(&self, action: Action) -> Outcome {
        let (answer, outcome) = mpsc::sync_channel(1);
        self.send(Request {
            action,
            answer: Some(answer),
        });
        outcome.recv().unwrap_or(Err(ActionError::Ending))
    }

    /// Ends the VMM, whatever the guest does.
    pub fn shutdown(&self) {
        self.send(Request {
            action: Action::ShutdownVmm,
            answer: None,
        });
    }

    fn send(&self, request: Request) {
        // A VMM that has ended needs no requests.
        if self.requests.send(request).is_ok() {
            let _ = self.event.write(1);
        }
    }
}
