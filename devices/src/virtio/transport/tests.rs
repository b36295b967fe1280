use std::fs::File;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Buffer, Driver, Ram};

fn driver() -> Driver {
    Driver::new(Box::new(Rng::new(File::open("/dev/urandom").unwrap())))
}

fn buffer(gpa: u64) -> Buffer {
    Buffer {
        gpa,
        length: 64,
        writable: true,
    }
}

#[test]
fn registers_are_where_configuration_space_says() {
    let driver = driver();
    let mut at = driver.capability(0x09).unwrap();
    let mut found = Vec::new();
    loop {
        let mut header = [0; 16];
        driver.function.read_config(at, &mut header);
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        if header[0] == 0x09 {
            assert_eq!(header[4], BAR);
            found.push((header[3], header[2], word(8), word(12)));
        }
        at = header[1].into();
        if at == 0 {
            break;
        }
    }
    let expected = [
        (1, 16, 0, 0x38),
        (2, 20, 0x3000, 0x1000),
        (3, 16, 0x1000, 1),
        (4, 16, 0x2000, 0x1000),
        (5, 20, 0, 0),
    ];
    assert_eq!(found, expected);
}

/// `cfg_type` 5: registers without the BAR.
#[test]
fn registers_are_reached_through_configuration_space() {
    let driver = driver();
    let window = 0x40 + 16 + 20 + 16 + 16;
    let point = |offset: u32, length: u32| {
        driver.function.write_config(window + 4, &[BAR]);
        driver
            .function
            .write_config(window + 8, &offset.to_le_bytes());
        driver
            .function
            .write_config(window + 12, &length.to_le_bytes());
    };
    point(0x14, 1);
    driver.function.write_config(window + 16, &[3]);
    assert_eq!(driver.status(), 3);
    point(0x12, 2);
    let mut data = [0; 2];
    driver.function.read_config(window + 16, &mut data);
    assert_eq!(data, [1, 0]);
    // Nonsense is no access.
    point(0x14, 3);
    driver.function.write_config(window + 16, &[0, 0, 0, 0]);
    point(0x13, 2);
    driver.function.write_config(window + 16, &[0, 0]);
    assert_eq!(driver.status(), 3);
}

#[test]
fn features_are_agreed_on_before_a_device_starts() {
    let mut driver = driver();
    let offered = driver.offered();
    for (accepted, works) in [
        (offered, true),
        (features::VERSION_1, true),
        (0, false),
        (offered & !features::VERSION_1, false),
        (offered | 1 << 60, false),
    ] {
        driver.set_status(0);
        driver.set_status(3);
        driver.accept(accepted);
        driver.set_status(11);
        assert_eq!(
            driver.status() & status::FEATURES_OK != 0,
            works,
            "{accepted:#x}"
        );
        driver.set_up(8);
        driver.set_status(15);
        assert_eq!(
            driver.status() & status::DRIVER_OK != 0,
            works,
            "{accepted:#x}"
        );
    }
}

#[test]
fn queues_are_as_they_are_once_enabled() {
    let mut driver = driver();
    driver.set_status(3);
    driver.set_up(8);
    driver.write(0x18, &4_u16.to_le_bytes());
    driver.write(0x20, &0x7000_u64.to_le_bytes());
    driver.write(0x1c, &0_u16.to_le_bytes());
    assert_eq!(driver.read(0x18), 8_u16.to_le_bytes());
    assert_eq!(
        driver.read(0x20),
        driver.queues[0].descriptors.to_le_bytes()
    );
    assert_eq!(driver.read(0x1c), 1_u16.to_le_bytes());
    // There is no queue 1.
    driver.write(0x16, &1_u16.to_le_bytes());
    assert_eq!(driver.read(0x18), [0; 2]);
    driver.write(0x18, &4_u16.to_le_bytes());
    driver.write(0x16, &0_u16.to_le_bytes());
    driver.set_status(0);
    assert_eq!(driver.read(0x18), 256_u16.to_le_bytes());
    // Not a power of two, and more than there can be.
    for size in [0, 3, 512_u16] {
        driver.write(0x18, &size.to_le_bytes());
        assert_eq!(driver.read(0x18), 256_u16.to_le_bytes(), "{size}");
    }
}

#[test]
fn vectors_that_are_not_there_are_none() {
    let driver = driver();
    for (written, read) in [(1, 1), (2, 0xffff), (0xffff, 0xffff), (0, 0)] {
        let written: u16 = written;
        driver.write(0x1a, &written.to_le_bytes());
        driver.write(0x10, &written.to_le_bytes());
        let read: u16 = read;
        assert_eq!(driver.read(0x1a), read.to_le_bytes());
        assert_eq!(driver.read(0x10), read.to_le_bytes());
    }
}

#[test]
fn a_queue_outside_of_memory_needs_a_reset() {
    for (register, address) in [(0x20, 0xffff_0000_u64), (0x28, 0x10_0000 - 2), (0x30, !3)] {
        let mut driver = driver();
        driver.set_status(3);
        driver.accept(driver.offered());
        driver.set_status(11);
        driver.write(0x10, &0_u16.to_le_bytes());
        driver.write(0x20, &0x1_0000_u64.to_le_bytes());
        driver.write(0x28, &0x1_4000_u64.to_le_bytes());
        driver.write(0x30, &0x1_6000_u64.to_le_bytes());
        driver.write(register, &address.to_le_bytes());
        driver.write(0x1c, &1_u16.to_le_bytes());
        driver.set_status(15);
        assert_ne!(driver.status() & status::NEEDS_RESET, 0, "{register:#x}");
        driver.wait_interrupt(0);
        // That helps.
        driver.start(0, 8);
        driver.make_available(0, 0, &[buffer(0x8_0000)]);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (0, 64));
    }
}

#[test]
fn a_driver_that_breaks_the_rules_has_to_reset() {
    let mut driver = driver();
    driver.start(0, 8);
    // More available than there is room for.
    let available = driver.queues[0].available;
    driver.fill(available + 2, &1000_u16.to_le_bytes());
    driver.kick(0);
    driver.wait_for_fault();
    driver.wait_interrupt(0);
    driver.start(0, 8);
    driver.make_available(0, 0, &[buffer(0x8_0000)]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (0, 64));
}

#[test]
fn a_loop_of_descriptors_ends() {
    let mut driver = driver();
    driver.start(0, 8);
    driver.describe(0, 0, buffer(0x8_0000), 1, 1);
    driver.describe(0, 1, buffer(0x8_1000), 1, 0);
    driver.offer(0, 0);
    driver.kick(0);
    let (head, written) = driver.wait_used(0);
    assert_eq!(head, 0);
    assert!(written <= 8 * 64, "{written}");
}

#[test]
fn a_paused_device_stands_still() {
    let mut driver = driver();
    driver.start(0, 8);
    driver.function.pause();
    driver.make_available(0, 0, &[buffer(0x8_0000)]);
    driver.kick(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(driver.take_used(0), None);
    driver.function.resume();
    assert_eq!(driver.wait_used(0), (0, 64));
    // Nothing runs that could be paused.
    driver.set_status(0);
    driver.function.pause();
    driver.function.resume();
}

/// Memory goes only when no request uses it any more.
#[test]
fn memory_that_goes_is_waited_for() {
    use pci::DmaTarget as _;
    let ram = Ram::default();
    let kept = ram.memory.get();
    std::thread::scope(|scope| {
        let going = scope.spawn(|| ram.memory.unmap(0, crate::virtio::testing::RAM as u64));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!going.is_finished());
        // Whoever comes later does not get it.
        assert_eq!(
            vm_memory::GuestMemoryBackend::num_regions(&*ram.memory.get()),
            0
        );
        drop(kept);
        going.join().unwrap().unwrap();
    });
}

proptest! {
    #[test]
    fn no_access_to_registers_panics(
        accesses in proptest::collection::vec(
            (0..BAR_SIZE + 16, 0_usize..9, any::<u64>(), any::<bool>()), 1..60,
        ),
    ) {
        let driver = driver();
        for (offset, width, value, is_write) in accesses {
            let mut data = value.to_le_bytes();
            let data = &mut data[..width.min(8)];
            if is_write {
                driver.write(offset, data);
            } else {
                driver.read_into(offset, data);
            }
        }
        driver.set_status(0);
        prop_assert_eq!(driver.status(), 0);
    }
}

/// Changes of a [`Counter`]'s registers: fewer than there are generations.
const CHANGES: u16 = 250;

/// A device whose registers are the same number twice, which a thread of its own counts up once.
struct Counter(Arc<std::sync::atomic::AtomicU32>);

struct Halves(Arc<std::sync::atomic::AtomicU32>);

impl DeviceConfig for Halves {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.0.load(Ordering::SeqCst).to_le_bytes();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }
}

impl Device for Counter {
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[]
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        Arc::new(Halves(Arc::clone(&self.0)))
    }

    fn start(self: Box<Self>, start: Start) -> Result<Box<dyn Running>, NotStarted> {
        let changes = start.config_changes;
        let value = Arc::clone(&self.0);
        let thread = std::thread::spawn(move || {
            for number in 1..=u32::from(CHANGES) {
                // Neither half of a change is seen alone.
                changes.make(|| {
                    value.store(number, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(20));
                    value.store(number << 16 | number, Ordering::SeqCst);
                });
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        Ok(Box::new(RunningCounter {
            device: self,
            thread,
        }))
    }
}

struct RunningCounter {
    device: Box<Counter>,
    thread: std::thread::JoinHandle<()>,
}

impl Running for RunningCounter {
    fn pause(&mut self) {}

    fn resume(&mut self) {}

    fn stop(self: Box<Self>) -> Box<dyn Device> {
        self.thread.join().unwrap();
        self.device
    }
}

fn counter() -> Driver {
    Driver::new(Box::new(Counter(Arc::default())))
}

#[test]
fn a_change_of_registers_is_told_by_generation_status_and_interrupt() {
    let mut driver = counter();
    let generation = |driver: &Driver| driver.read::<1>(0x15)[0];
    assert_eq!(generation(&driver), 0);
    driver.start(0, 8);
    driver.wait_interrupt(0);
    assert_eq!(driver.isr() & 2, 2);
    driver.set_status(0);
    assert_eq!(driver.isr(), 0);
    assert_eq!(driver.read(0x2000), CHANGES.to_le_bytes());
    assert_eq!(u16::from(generation(&driver)), CHANGES);
}

#[test]
fn registers_read_between_two_equal_generations_are_of_one_moment() {
    let mut driver = counter();
    driver.start(0, 8);
    let mut last = 0;
    while last < CHANGES {
        let before = driver.read::<1>(0x15)[0];
        let low = u16::from_le_bytes(driver.read(0x2000));
        let high = u16::from_le_bytes(driver.read(0x2002));
        if driver.read::<1>(0x15)[0] == before {
            assert_eq!(low, high);
            assert_eq!(low, u16::from(before));
            last = low;
        }
    }
}
