//! Hostile drivers for any device: a driver is a [program](Program), made by property tests or
//! read from a fuzzer's bytes, and reaches the device as a guest does.
//!
//! After each program: no thread has panicked and the host did not fail; the device has written to
//! nothing but buffers and rings that it was given, and to nothing at all while it stood still or was
//! stopped; the host's side is as it must be; and by the rules the device works again.
//!
//! A device joins with a line in `DEVICES`, and a [`Subject`] in a file of its own folder.

mod machine;
mod program;
mod shadow;
#[cfg(test)]
mod strategies;
#[cfg(test)]
mod tests;
mod watched;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use self::machine::Machine;
use self::program::Program;
use super::Driver;
use crate::virtio::{Device, block, console, net, rng, vsock};

/// Longer than any program takes, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(60);

/// How a device is made.
type Make = fn() -> Box<dyn Subject>;

/// Every device, by its name.
const DEVICES: &[(&str, Make)] = &[
    ("rng", || Box::new(rng::hostile::Source::new())),
    ("block", || Box::new(block::hostile::Disk::writable())),
    ("block_direct", || Box::new(block::hostile::Disk::direct())),
    ("block_readonly", || {
        Box::new(block::hostile::Disk::readonly())
    }),
    ("block_qcow2", || Box::new(block::hostile::Qcow2Disk::new())),
    ("net", || Box::new(net::hostile::Host::new())),
    ("console", || Box::new(console::hostile::Host::new())),
    ("vsock", || Box::new(vsock::hostile::Host::new())),
];

/// A device under test with its host's side.
pub(in crate::virtio) trait Subject: Send {
    /// The device.
    fn device(&mut self) -> Box<dyn Device>;

    /// What drivers write into buffers that the device reads: headers of requests, and the like.
    fn contents(&self) -> Vec<Vec<u8>>;

    /// Asks for something by the rules, and does not wait for it. The driver has just been started, with
    /// 16 entries in each queue.
    fn ask(&mut self, driver: &mut Driver);

    /// Waits for what was asked for, and panics unless it is right.
    fn check_answer(&mut self, driver: &mut Driver);

    /// The host's side does something, whatever that is.
    fn act(&mut self, _what: u8) {}

    /// From now on the host has something for every request of the first queue, where that is up to it.
    #[cfg_attr(not(test), expect(dead_code, reason = "for restless drivers"))]
    fn flood(&mut self) {}

    /// Panics unless the host's side is as it must be, whatever a driver has done.
    fn check_host(&mut self) {}

    /// What no driver may ever read; nothing if it is empty.
    fn secret(&self) -> &[u8] {
        &[]
    }
}

/// The names of all devices that can be tested.
pub fn devices() -> impl Iterator<Item = &'static str> {
    DEVICES.iter().map(|(name, _)| *name)
}

fn subject(device: &str) -> Box<dyn Subject> {
    let found = DEVICES.iter().find(|(name, _)| *name == device);
    let (_, make) = found.unwrap_or_else(|| panic!("no device is called {device}"));
    make()
}

/// Lets the driver that bytes are have the device of this name.
///
/// # Panics
/// The device does what it may not, or does not end; or there is no such device.
#[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "for fuzzers"))]
pub fn run(device: &str, bytes: &[u8]) {
    run_program(device, Program::decode(bytes));
}

/// The steps of the driver that bytes are, one a line.
#[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "for fuzzers"))]
pub fn describe(bytes: &[u8]) -> String {
    let Program(steps) = Program::decode(bytes);
    let lines = steps.iter().map(|step| format!("{step:?}\n"));
    lines.collect()
}

fn run_program(device: &str, program: Program) {
    let mut subject = subject(device);
    within_deadline(move || {
        let mut machine = Machine::new(&mut *subject);
        for step in &program.0 {
            machine.step(step, &mut *subject);
        }
        machine.finish(&mut *subject);
        drop(machine);
        subject.check_host();
    });
}

/// Starts and resets the device of this name again and again.
///
/// # Panics
/// As for [`run`]; it has to work at the end.
pub fn reset_often(device: &str, rounds: u32, while_busy: bool) {
    let mut subject = subject(device);
    within_deadline(move || {
        let mut driver = Driver::new(subject.device());
        for _ in 0..rounds {
            driver.start(0, 16);
            if while_busy {
                subject.ask(&mut driver);
            }
            driver.set_status(0);
        }
        driver.start(0, 16);
        subject.ask(&mut driver);
        subject.check_answer(&mut driver);
        drop(driver);
        subject.check_host();
    });
}

/// Lets a driver have a device that is told of new requests whenever it has done one, and pauses it,
/// takes memory away from it and resets it meanwhile.
///
/// # Panics
/// The device is never done.
#[cfg(test)]
pub(in crate::virtio) fn never_rest(
    device: Box<dyn Device>,
    ask: impl FnOnce(&mut Driver) + Send + 'static,
) {
    use std::sync::atomic::{AtomicBool, Ordering};

    use pci::DmaTarget as _;
    use vm_memory::{Bytes as _, GuestAddress};

    within_deadline(move || {
        let mut driver = Driver::new(device);
        driver.start(0, 16);
        ask(&mut driver);
        let queue = driver.queues[0];
        let kick = std::sync::Arc::clone(&driver.region.notifications()[0].event);
        let memory = std::sync::Arc::clone(&driver.ram.memory);
        let ends = AtomicBool::new(false);
        let area = super::Mapping::new(program::AREA_SIZE);
        thread::scope(|scope| {
            scope.spawn(|| {
                // The same request again and again, as often as the queue has room for it.
                while !ends.load(Ordering::Relaxed) {
                    let memory = memory.get();
                    let used: u16 = memory.read_obj(GuestAddress(queue.used + 2)).unwrap();
                    let more = used.wrapping_add(queue.size);
                    memory
                        .write_obj(more, GuestAddress(queue.available + 2))
                        .unwrap();
                    let _ = kick.write(1);
                }
            });
            for _ in 0..10 {
                memory.map(&area.at(program::AREA)).unwrap();
                driver.function.pause();
                let before = driver.bytes(queue.used, 6 + 8 * 16);
                thread::sleep(Duration::from_millis(1));
                assert_eq!(driver.bytes(queue.used, 6 + 8 * 16), before);
                driver.function.resume();
                memory
                    .unmap(program::AREA, program::AREA_SIZE as u64)
                    .unwrap();
            }
            driver.set_status(0);
            ends.store(true, Ordering::Relaxed);
        });
    });
}

/// Runs what has to end.
fn within_deadline(work: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let builder = thread::Builder::new().name("driver".to_owned());
    let thread = builder.spawn(move || {
        let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
    });
    let thread = thread.unwrap();
    match ended.recv_timeout(DEADLINE) {
        Ok(result) => {
            let _ = thread.join();
            if let Err(panic) = result {
                resume_unwind(panic);
            }
        }
        Err(RecvTimeoutError::Timeout) => panic!("it does not end: threads wait for each other"),
        Err(RecvTimeoutError::Disconnected) => panic!("the driver's thread has gone"),
    }
}
