//! The REST API: what the VMM can be asked for, and how that is said over HTTP.
//!
//! A request is an [`Action`] by the time it reaches the main loop, which carries it out and gives
//! an [`Answer`] or an [`ActionError`]; neither knows HTTP. [`routes`] has the names, bodies and
//! statuses.

mod action;
mod addition;
pub mod http;
mod numa;
pub mod openapi;
mod routes;
mod service;
mod types;

pub use action::{Action, ActionError, Answer};
pub use addition::Addition;
pub use routes::{BEFORE_ROUTES, Effect, Method, Needs, ROOT, ROUTES, Route};
pub use service::Api;
pub use types::{
    CoherentMemory, DeviceNode, NumaDevice, NumaInfo, NumaNode, PciBarType, Resource, VmCounters,
    VmInfo, VmRemoveDevice, VmState, VmmPingResponse,
};
