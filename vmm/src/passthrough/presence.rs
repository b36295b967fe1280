//! Whether a device is still there. One that is lost stays so, over reboots of the guest too.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use pci::device::DeviceError;
use vmm_sys_util::eventfd::EventFd;

use crate::events::{Event, Events};

/// Whether a device is still there.
#[derive(Debug)]
pub struct Presence {
    /// What the operator called it.
    option: String,
    /// What the plan calls it.
    name: OnceLock<String>,
    lost: AtomicBool,
    /// Written when it is lost, as that of others.
    losses: Arc<EventFd>,
    /// Where its loss is reported.
    events: Events,
}

impl Presence {
    /// A device that is there. `losses` is written when it is lost, which `events` are told of.
    pub fn new(option: String, losses: &Arc<EventFd>, events: &Events) -> Self {
        Self {
            option,
            name: OnceLock::new(),
            lost: AtomicBool::new(false),
            losses: Arc::clone(losses),
            events: events.clone(),
        }
    }

    /// Gives the device the name that it has in the plan. The first one stays.
    pub fn set_name(&self, name: &str) {
        self.name.get_or_init(|| name.to_owned());
    }

    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Gives it up, and reports that if nobody has before. From any thread, whatever it holds.
    pub fn lose(&self, reason: &(dyn Error + 'static)) {
        if self.lost.swap(true, Ordering::AcqRel) {
            return;
        }
        self.report(&describe(reason));
        if let Err(error) = self.losses.write(1) {
            log::error!("cannot wake the main loop: {error}");
        }
    }

    /// Reports the loss: every one is reported here, and once.
    fn report(&self, reason: &str) {
        let option = &self.option;
        let id = self.name.get();
        match id {
            Some(name) => log::error!("device {name} ({option}) is lost: {reason}"),
            None => log::error!("the device of {option} is lost: {reason}"),
        }
        self.events.report(Event::DeviceLost {
            id: id.map(String::as_str),
            option,
            reason,
        });
    }
}

/// An error with all that it comes from; of a loss, what it comes from alone.
fn describe(error: &(dyn Error + 'static)) -> String {
    let first = match error.downcast_ref() {
        Some(DeviceError::Lost(source)) => source,
        _ => error,
    };
    let mut text = first.to_string();
    let mut next = first.source();
    while let Some(error) = next {
        // Writing to a string does not fail.
        let _ = write!(text, ": {error}");
        next = error.source();
    }
    text
}

/// The loss of a device, if that is what is behind an error.
pub fn find_loss<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a DeviceError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<DeviceError>() {
            return matches!(error, DeviceError::Lost(_)).then_some(error);
        }
        // What an I/O error is made of is not among its sources.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Instant;

    use thiserror::Error;

    use super::*;
    use crate::config::Target;

    #[derive(Debug, Error)]
    #[error("an outer one")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_device_is_lost_once() {
        let losses = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let events = Events::start(&Target::Path(path.clone()), Instant::now()).unwrap();
        let presence = Presence::new("--device path=/sys/x".to_owned(), &losses, &events);
        presence.set_name("gpu0");
        assert!(!presence.is_lost());
        losses.read().unwrap_err();
        for _ in 0..3 {
            presence.lose(&io::Error::other("it burns"));
            assert!(presence.is_lost());
        }
        assert_eq!(losses.read().unwrap(), 1);
        events.close();
        let event: serde_json::Value =
            serde_json::from_reader(File::open(path).unwrap()).expect("one event");
        assert_eq!(event["source"], "vm");
        assert_eq!(event["event"], "device-lost");
        assert_eq!(
            event["properties"].to_string(),
            r#"{"id":"gpu0","option":"--device path=/sys/x","reason":"it burns"}"#
        );
    }

    #[test]
    fn a_reason_is_told_with_all_that_it_comes_from() {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, Outer(io::Error::other("gone")));
        assert_eq!(describe(&DeviceError::Lost(gone())), "an outer one: gone");
        assert_eq!(describe(&gone()), "an outer one: gone");
    }

    #[test]
    fn losses_are_found_behind_other_errors() {
        let lost = || DeviceError::Lost(io::ErrorKind::BrokenPipe.into());
        assert!(find_loss(&lost()).is_some());
        assert!(find_loss(&Outer(lost().into())).is_some());
        assert!(find_loss(&io::Error::other(Outer(lost().into()))).is_some());
        let refused = DeviceError::Refused(io::ErrorKind::Unsupported.into());
        assert!(find_loss(&Outer(refused.into())).is_none());
        assert!(find_loss(&io::Error::from_raw_os_error(libc::EINVAL)).is_none());
    }
}
