//! The registers of hardware-reduced ACPI: going to sleep, resetting, and telling the guest that
//! something happened.
//!
//! The numbers here are also what the tables and the AML must say; whoever writes those uses these
//! constants.

pub mod event;
pub mod sleep;

pub use event::{EventDevice, EventDeviceState, GedEvent};
pub use sleep::{PowerEvent, SleepDevice};
