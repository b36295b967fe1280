//! Notices in the main loop that a device goes, while nobody asks it for anything.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use pci::device::DeviceError;
use pci::vfio::VfioDevice;
use pci::vfio_user::Client;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::presence::Presence;

/// Waits for the end of a device, as long as the process lives.
pub struct Watch {
    presence: Arc<Presence>,
    source: Source,
}

/// Where the end is seen.
enum Source {
    /// The other end of the socket is closed.
    Server(Arc<Client>),
    /// The host's driver writes to events.
    Driver {
        /// Of which the host wants the device back.
        request: EventFd,
        /// Of which the device has had an error that it cannot correct.
        error: EventFd,
    },
}

impl Watch {
    /// Of a device in another process.
    pub fn server(client: &Arc<Client>, presence: &Arc<Presence>) -> Self {
        Self {
            presence: Arc::clone(presence),
            source: Source::Server(Arc::clone(client)),
        }
    }

    /// Of a device of the host.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn driver(device: &VfioDevice, presence: &Arc<Presence>) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let (request, error) = (event()?, event()?);
        for (what, asked) in [
            ("requests", device.on_request(&request)),
            ("errors", device.on_error(&error)),
        ] {
            match asked {
                Ok(()) => {}
                Err(error @ DeviceError::Lost(_)) => presence.lose(&error),
                // Not all have them, and all can do without.
                Err(DeviceError::Refused(error)) => log::debug!("no events for {what}: {error}"),
            }
        }
        Ok(Self {
            presence: Arc::clone(presence),
            source: Source::Driver { request, error },
        })
    }

    fn descriptors(&self) -> Vec<(RawFd, EventSet)> {
        match &self.source {
            Source::Server(client) => {
                let events = EventSet::READ_HANG_UP | EventSet::HANG_UP;
                vec![(client.as_fd().as_raw_fd(), events)]
            }
            Source::Driver { request, error } => [request, error]
                .map(|event| (event.as_raw_fd(), EventSet::IN))
                .into(),
        }
    }

    /// Why the device is lost, if it is.
    fn reason(&self) -> Option<DeviceError> {
        match &self.source {
            Source::Server(client) => client.check().err(),
            Source::Driver { request, error } => {
                let lost = |text| Some(DeviceError::Lost(io::Error::other(text)));
                if error.read().is_ok() {
                    lost("it reports an error that it cannot correct")
                } else if request.read().is_ok() {
                    lost("the host asks for it back")
                } else {
                    None
                }
            }
        }
    }
}

impl MutEventSubscriber for Watch {
    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        let Some(reason) = self.reason() else {
            return;
        };
        self.presence.lose(&reason);
        for (descriptor, _) in self.descriptors() {
            if let Err(error) = ops.remove(Events::empty_raw(descriptor)) {
                log::error!("cannot stop waiting for the end of a device: {error:?}");
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (descriptor, events) in self.descriptors() {
            if let Err(error) = ops.add(Events::new_raw(descriptor, events)) {
                log::error!("cannot wait for the end of a device: {error:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use event_manager::{EventManager, SubscriberOps};

    use super::*;

    #[test]
    fn what_the_driver_says_is_heard_once() {
        for asked in [true, false] {
            let losses = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            let presence = Arc::new(Presence::new(
                String::new(),
                &losses,
                &crate::events::Events::none(),
            ));
            let event = || EventFd::new(EFD_NONBLOCK).unwrap();
            let (request, error) = (event(), event());
            let writer = if asked { &request } else { &error }.try_clone().unwrap();
            let watch = Watch {
                presence: Arc::clone(&presence),
                source: Source::Driver { request, error },
            };
            let mut events: EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>> =
                EventManager::new().unwrap();
            events.add_subscriber(Arc::new(Mutex::new(watch)));
            assert_eq!(events.run_with_timeout(0).unwrap(), 0);
            assert!(!presence.is_lost());
            writer.write(1).unwrap();
            assert_eq!(events.run_with_timeout(0).unwrap(), 1);
            assert!(presence.is_lost());
            // The host repeats itself.
            writer.write(1).unwrap();
            assert_eq!(events.run_with_timeout(0).unwrap(), 0);
            assert_eq!(losses.read().unwrap(), 1);
        }
    }
}
