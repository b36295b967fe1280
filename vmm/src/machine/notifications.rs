//! Writes of a guest that KVM turns into events: the vCPU does not leave the guest for them.
//!
//! Source: Linux, Documentation/virt/kvm/api.rst, "KVM_IOEVENTFD".

use std::io;
use std::sync::{Arc, Once};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use pci::{Notification, Space};
use vmm_sys_util::eventfd::EventFd;

/// What turns writes into events.
pub trait WriteEvents: Send + Sync {
    /// From now on a write of any width and value to `address` signals `event`.
    ///
    /// # Errors
    /// There is no room for another one.
    fn register(&self, space: Space, address: u64, event: &EventFd) -> io::Result<()>;

    /// Ends that.
    ///
    /// # Errors
    /// It was not so.
    fn unregister(&self, space: Space, address: u64, event: &EventFd) -> io::Result<()>;
}

impl WriteEvents for VmFd {
    fn register(&self, space: Space, address: u64, event: &EventFd) -> io::Result<()> {
        Ok(self.register_ioevent(event, &io_event_address(space, address), NoDatamatch)?)
    }

    fn unregister(&self, space: Space, address: u64, event: &EventFd) -> io::Result<()> {
        Ok(self.unregister_ioevent(event, &io_event_address(space, address), NoDatamatch)?)
    }
}

fn io_event_address(space: Space, address: u64) -> IoEventAddress {
    match space {
        Space::Memory => IoEventAddress::Mmio(address),
        Space::Io => IoEventAddress::Pio(address),
    }
}

/// The notifications of the regions of one machine.
pub struct Notifications {
    events: Arc<dyn WriteEvents>,
    refused: Once,
}

/// Notifications of a region at a place. Dropping it ends them: writes then come to the region.
pub struct Registered {
    events: Arc<dyn WriteEvents>,
    space: Space,
    list: Vec<(u64, Arc<EventFd>)>,
}

impl Notifications {
    /// None yet.
    pub fn new(events: Arc<dyn WriteEvents>) -> Self {
        Self {
            events,
            refused: Once::new(),
        }
    }

    /// Turns the notifications of a region at `base` into events. Where that cannot be done, writes
    /// are trapped and come to the region, which is slower and right.
    pub fn register(&self, space: Space, base: u64, list: &[Notification]) -> Registered {
        let mut registered = Registered {
            events: Arc::clone(&self.events),
            space,
            list: Vec::new(),
        };
        for Notification { offset, event } in list {
            let Some(address) = base.checked_add(*offset) else {
                continue;
            };
            match self.events.register(space, address, event) {
                Ok(()) => registered.list.push((address, Arc::clone(event))),
                Err(error) => self.refused.call_once(|| {
                    log::debug!("KVM makes no event of writes to {address:#x}, so they are trapped, as may be others: {error}");
                }),
            }
        }
        registered
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        for (address, event) in &self.list {
            if let Err(error) = self.events.unregister(self.space, *address, event) {
                log::error!("KVM keeps an event of writes to {address:#x}: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    use super::*;

    /// Who has no room for more than two events, and knows which there are.
    #[derive(Default)]
    struct Fake(Mutex<BTreeSet<(bool, u64, i32)>>);

    impl Fake {
        fn key(space: Space, address: u64, event: &EventFd) -> (bool, u64, i32) {
            (space == Space::Io, address, event.as_raw_fd())
        }

        fn there(&self) -> Vec<(bool, u64, i32)> {
            self.0.lock().unwrap().iter().copied().collect()
        }
    }

    impl WriteEvents for Fake {
        fn register(&self, space: Space, address: u64, event: &EventFd) -> io::Result<()> {
            let mut there = self.0.lock().unwrap();
            if there.len() == 2 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            assert!(there.insert(Self::key(space, address, event)));
            Ok(())
        }

        fn unregister(&self, space: Space, address: u64, event: &EventFd) -> io::Result<()> {
            let mut there = self.0.lock().unwrap();
            assert!(there.remove(&Self::key(space, address, event)));
            Ok(())
        }
    }

    fn notification(offset: u64) -> Notification {
        let event = Arc::new(EventFd::new(0).unwrap());
        Notification { offset, event }
    }

    #[test]
    fn events_come_and_go_with_the_place() {
        let fake = Arc::new(Fake::default());
        let notifications = Notifications::new(Arc::clone(&fake) as _);
        let list = [notification(0x3000), notification(0x3004)];
        let fds = [0, 1].map(|at: usize| list[at].event.as_raw_fd());
        let registered = notifications.register(Space::Memory, 0x10_0000_0000, &list);
        assert_eq!(
            fake.there(),
            [
                (false, 0x10_0000_3000, fds[0]),
                (false, 0x10_0000_3004, fds[1])
            ]
        );
        drop(registered);
        assert_eq!(fake.there(), []);
        let registered = notifications.register(Space::Io, 0x6000, &list[..1]);
        assert_eq!(fake.there(), [(true, 0x9000, fds[0])]);
        drop(registered);
        assert_eq!(fake.there(), []);
    }

    #[test]
    fn those_that_are_refused_are_left_out() {
        let fake = Arc::new(Fake::default());
        let notifications = Notifications::new(Arc::clone(&fake) as _);
        let list = [0, 4, 8, 12].map(notification);
        let registered = notifications.register(Space::Memory, 0x1000, &list);
        let addresses = || fake.there().into_iter().map(|key| key.1);
        assert!(addresses().eq([0x1000, 0x1004]));
        // Where nothing can be, nothing is.
        let nowhere = notifications.register(Space::Memory, u64::MAX - 1, &list[2..]);
        assert!(addresses().eq([0x1000, 0x1004]));
        drop((registered, nowhere));
        assert_eq!(fake.there(), []);
    }
}
