//! A console with one port (section 5.3).
//!
//! | | |
//! |---|---|
//! | `device` | [`Console`]: what the device offers, and its registers |
//! | `worker` | carries bytes between queues and line |
//! | `backend` | [`Line`]: where the host puts input and takes output, for all boots |

mod backend;
mod device;
#[cfg(any(test, feature = "testing"))]
pub(super) mod hostile;
mod worker;

#[cfg(test)]
mod tests;

pub use backend::{Line, LineOutput, LineParts, Size};
pub use device::Console;
