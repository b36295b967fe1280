//! Actions over HTTP.

use std::error::Error;

use serde::Serialize;

use super::action::{Action, ActionError, Answer};
use super::http::{Method, Request, Response, Service};
use super::routes::{self, Route};
use crate::vmm::Handle;

/// Answers HTTP requests by asking a VMM.
pub struct Api {
    handle: Handle,
}

impl Api {
    /// Asks the VMM behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    fn act(&self, action: Action) -> Response {
        match self.handle.call(action) {
            Ok(Answer::Done) => Response::new(204),
            Ok(Answer::Ping(pong)) => value(&pong),
            Ok(Answer::Info(info)) => value(&info),
            Ok(Answer::Counters(counters)) => value(&counters),
            Err(error) => refused(&error),
        }
    }
}

impl Service for Api {
    fn answer(&self, request: Request) -> Response {
        let Request {
            method,
            path,
            body,
            files,
        } = request;
        let Some(route) = Route::find(&path) else {
            return failed(404, &[format!("there is no route {path}")]);
        };
        let wanted = match route.method {
            routes::Method::Get => Method::Get,
            routes::Method::Put => Method::Put,
        };
        if method != wanted {
            let reason = format!("{path} takes {wanted}, not {method}");
            return Response {
                allow: vec![wanted],
                ..failed(405, &[reason])
            };
        }
        if !files.is_empty() && !route.takes_files() {
            let count = files.len();
            let reason = format!("{path} takes no descriptors, and {count} came with the request");
            return failed(400, &[reason]);
        }
        match route.action(&body, files) {
            Ok(action) => self.act(action),
            Err(error) => refused(&error),
        }
    }

    fn refuse(&self, status: u16, reason: &str) -> Response {
        failed(status, &[reason.to_owned()])
    }
}

impl ActionError {
    /// The HTTP status that says so.
    pub fn status(&self) -> u16 {
        match self {
            Self::Config(_) | Self::NodesAfterBoot { .. } => 400,
            Self::NotCreated | Self::NoDevice { .. } => 404,
            Self::State(_) | Self::NoPowerButton => 405,
            Self::Exists => 409,
            Self::NotYet(_) | Self::Nmi(_) => 501,
            Self::Pause(_) | Self::Boot(_) => 500,
            Self::Ending => 503,
        }
    }
}

/// An error with all that it comes from, each with its own text, the outermost first.
fn refused(error: &ActionError) -> Response {
    let mut lines = Vec::new();
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        // Several problems of a configuration are lines of one text.
        lines.extend(error.to_string().lines().map(ToOwned::to_owned));
        next = error.source();
    }
    failed(error.status(), &lines)
}

fn failed(status: u16, reasons: &[String]) -> Response {
    log::info!("API: {status}: {}", reasons.join(": "));
    Response {
        status,
        ..value(&reasons)
    }
}

fn value<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => Response::json(200, body),
        Err(error) => {
            log::error!("API: an answer cannot be written: {error}");
            Response::new(500)
        }
    }
}
