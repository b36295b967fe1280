//! Wired interrupts of passed-through devices: the I/O APIC is ours, so what a device writes to an
//! eventfd is carried to it by a thread.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use devices::ioapic::IoApic;
use pci::{InterruptLine, ResampledLine};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::gate::{Gate, Member, Place};
use crate::plan::Gsi;

/// Events taken at a time.
const BATCH: usize = 16;

/// The lines of one machine, and the thread that serves them, which there is from the first line on.
pub struct IntxLines {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    ioapic: Arc<IoApic>,
    epoll: Epoll,
    stop: EventFd,
    /// Written so that the thread looks whether it is to park.
    kick: EventFd,
    /// By descriptor of their trigger.
    lines: Mutex<BTreeMap<RawFd, Arc<Wires>>>,
}

/// One device's connection to a pin, which others may share.
struct Wires {
    pin: u8,
    input: Arc<dyn InterruptLine>,
    trigger: EventFd,
    resample: EventFd,
}

struct Line {
    shared: Arc<Shared>,
    wires: Arc<Wires>,
}

impl IntxLines {
    /// No line yet.
    pub fn new(ioapic: &Arc<IoApic>, gate: &Arc<Gate>) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let kick = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        for fd in [&stop, &kick].map(EventFd::as_raw_fd) {
            let event = EpollEvent::new(EventSet::IN, fd as u64);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(Self {
            shared: Arc::new(Shared {
                ioapic: Arc::clone(ioapic),
                epoll,
                stop,
                kick,
                lines: Mutex::default(),
            }),
            gate: Arc::clone(gate),
            thread: Mutex::new(None),
        })
    }

    /// Makes the thread look whether it is to park. There may be none.
    pub fn kick(&self) {
        if let Err(error) = self.shared.kick.write(1) {
            log::error!("cannot wake the thread of wired interrupts: {error}");
        }
    }

    /// A line into the I/O APIC's pin `gsi`.
    pub fn line(&self, gsi: Gsi) -> io::Result<Arc<dyn ResampledLine>> {
        let no_pin = || io::Error::other(format!("the I/O APIC has no pin {gsi}"));
        let pin = u8::try_from(gsi).map_err(|_| no_pin())?;
        let wires = Arc::new(Wires {
            pin,
            input: self.shared.ioapic.line(pin).ok_or_else(no_pin)?,
            trigger: EventFd::new(EFD_NONBLOCK)?,
            resample: EventFd::new(EFD_NONBLOCK)?,
        });
        self.serve()?;
        let fd = wires.trigger.as_raw_fd();
        lock(&self.shared.lines).insert(fd, Arc::clone(&wires));
        let line = Line {
            shared: Arc::clone(&self.shared),
            wires,
        };
        let event = EpollEvent::new(EventSet::IN, fd as u64);
        self.shared.epoll.ctl(ControlOperation::Add, fd, event)?;
        let shared = Arc::downgrade(&self.shared);
        let on_end = move || {
            if let Some(shared) = shared.upgrade() {
                shared.ended(pin);
            }
        };
        self.shared.ioapic.resample(pin, Arc::new(on_end));
        Ok(Arc::new(line))
    }

    /// Starts the thread, unless it runs.
    fn serve(&self) -> io::Result<()> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let place = self.gate.admit(Member::WiredInterrupts);
            let builder = thread::Builder::new().name("intx".to_owned());
            *thread = Some(builder.spawn(move || shared.serve(&place))?);
        }
        Ok(())
    }
}

impl Drop for IntxLines {
    fn drop(&mut self) {
        if let Some(thread) = lock(&self.thread).take()
            && self.shared.stop.write(1).is_ok()
            && thread.join().is_err()
        {
            log::error!("the thread of wired interrupts panicked");
        }
    }
}

impl Shared {
    fn serve(&self, place: &Place) {
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            // What devices write meanwhile stays in their eventfds.
            if place.seat().is_pausing() {
                place.park(|_| Ok(()));
            }
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("cannot wait for wired interrupts: {error}");
                    return;
                }
            };
            for event in events.iter().take(count) {
                let fd = event.fd();
                if fd == self.stop.as_raw_fd() {
                    return;
                }
                if fd == self.kick.as_raw_fd() {
                    // Nothing to read means that it has been read before.
                    let _ = self.kick.read();
                    continue;
                }
                let wires = lock(&self.lines).get(&fd).cloned();
                // Nothing to read means that the line has gone, or another one has its number.
                if let Some(wires) = wires.filter(|wires| wires.trigger.read().is_ok()) {
                    wires.input.set_level(true);
                }
            }
        }
    }

    /// The guest has ended the interrupt of a pin, which is released.
    fn ended(&self, pin: u8) {
        let lines = lock(&self.lines);
        for wires in lines.values().filter(|wires| wires.pin == pin) {
            if let Err(error) = wires.resample.write(1) {
                log::error!("cannot tell a device that its interrupt has ended: {error}");
            }
        }
    }
}

impl ResampledLine for Line {
    fn trigger(&self) -> &EventFd {
        &self.wires.trigger
    }

    fn resample(&self) -> &EventFd {
        &self.wires.resample
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let fd = self.wires.trigger.as_raw_fd();
        lock(&self.shared.lines).remove(&fd);
        let event = EpollEvent::default();
        // It may not have been added.
        let _ = self.shared.epoll.ctl(ControlOperation::Delete, fd, event);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use devices::bus::BusDevice;
    use devices::ioapic::MsiPort;
    use pci::MsiMessage;

    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<u32>>);

    impl MsiPort for Sent {
        fn send(&self, message: MsiMessage) {
            lock(&self.0).push(message.data & 0xff);
        }

        fn set_route(&self, _pin: u8, _message: Option<MsiMessage>, _level: bool) {}
    }

    fn wait(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "no {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn interrupts_wait_while_the_machine_is_paused() {
        let sent = Arc::new(Sent::default());
        let ioapic = Arc::new(IoApic::new(Arc::clone(&sent) as Arc<dyn MsiPort>));
        ioapic.write(0, &0x32_u32.to_le_bytes());
        ioapic.write(0x10, &0x8041_u32.to_le_bytes());
        let gate = Arc::new(Gate::default());
        let lines = IntxLines::new(&ioapic, &gate).unwrap();
        // Nothing to wait for yet.
        gate.close();
        assert_eq!(gate.wait(Duration::ZERO), []);
        gate.open();
        let line = lines.line(17).unwrap();
        for count in 1..=3 {
            gate.close();
            lines.kick();
            assert_eq!(gate.wait(Duration::from_secs(60)), []);
            line.trigger().write(1).unwrap();
            thread::sleep(Duration::from_millis(10));
            assert_eq!(lock(&sent.0).len(), count - 1);
            gate.open();
            wait("interrupt", || lock(&sent.0).len() == count);
            ioapic.end_of_interrupt(0x41);
        }
        gate.close();
        lines.kick();
        assert_eq!(gate.wait(Duration::from_secs(60)), []);
        gate.stop();
        // Its thread still ends.
        drop(lines);
    }

    #[test]
    fn a_shared_line_interrupts_until_all_devices_are_done() {
        let sent = Arc::new(Sent::default());
        let ioapic = Arc::new(IoApic::new(Arc::clone(&sent) as Arc<dyn MsiPort>));
        // Pin 17: vector 0x41, level-triggered, unmasked.
        ioapic.write(0, &0x32_u32.to_le_bytes());
        ioapic.write(0x10, &0x8041_u32.to_le_bytes());
        let lines = IntxLines::new(&ioapic, &Arc::default()).unwrap();
        let [first, second] = [17, 17].map(|gsi| lines.line(gsi).unwrap());
        assert!(lines.line(24).is_err());
        first.trigger().write(1).unwrap();
        wait("interrupt", || *lock(&sent.0) == [0x41]);
        // Both are asked whether they are done; one is not.
        ioapic.end_of_interrupt(0x41);
        assert_eq!(first.resample().read().unwrap(), 1);
        assert_eq!(second.resample().read().unwrap(), 1);
        second.trigger().write(1).unwrap();
        wait("second interrupt", || *lock(&sent.0) == [0x41, 0x41]);
        drop(first);
        ioapic.end_of_interrupt(0x41);
        assert_eq!(second.resample().read().unwrap(), 1);
        assert_eq!(lock(&sent.0).len(), 2);
    }
}
