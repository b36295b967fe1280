//! What the devices' tests share.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use pci::InterruptLine;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::bus::BusDevice;

/// A line that remembers its level and counts its rising edges.
#[derive(Default)]
pub(crate) struct TestLine {
    asserted: AtomicBool,
    edges: AtomicU32,
}

impl TestLine {
    pub(crate) fn asserted(&self) -> bool {
        self.asserted.load(Ordering::Relaxed)
    }

    pub(crate) fn edges(&self) -> u32 {
        self.edges.load(Ordering::Relaxed)
    }
}

impl InterruptLine for TestLine {
    fn set_level(&self, asserted: bool) {
        if asserted && !self.asserted.swap(asserted, Ordering::Relaxed) {
            self.edges.fetch_add(1, Ordering::Relaxed);
        }
        self.asserted.store(asserted, Ordering::Relaxed);
    }
}

/// A writer whose bytes can be looked at.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<u8>>>);

impl Recorder {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An access of a hostile guest.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

impl Access {
    pub(crate) fn apply(&self, device: &dyn BusDevice) {
        match self {
            Access::Read(offset, width) => device.read(*offset, &mut vec![0xa5; *width]),
            Access::Write(offset, data) => device.write(*offset, data),
        }
    }
}

/// Accesses of 0 to 16 bytes, mostly where registers are.
pub(crate) fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let offset = || {
        prop_oneof![
            4 => 0..0x50_u64,
            2 => (0..0x14_u64).prop_map(|register| register * 4),
            1 => 0xfd8..0x1008_u64,
            1 => u64::MAX - 16..=u64::MAX,
            1 => any::<u64>(),
        ]
    };
    let access = prop_oneof![
        (offset(), 0..=16_usize).prop_map(|(offset, width)| Access::Read(offset, width)),
        (offset(), vec(any::<u8>(), 0..=16)).prop_map(|(offset, data)| Access::Write(offset, data)),
    ];
    vec(access, 0..64)
}

/// Checks that no access panics, whatever its width, offset and order, and that a read leaves no
/// byte as it was.
pub(crate) fn never_panics<D: BusDevice>(device: impl Fn() -> D) {
    proptest!(|(accesses in accesses())| {
        let device = device();
        for access in &accesses {
            access.apply(&device);
        }
        // A byte that is left alone keeps both patterns.
        let (mut ones, mut zeros) = ([0xff; 16], [0; 16]);
        device.read(0x1000, &mut ones);
        device.read(0x1000, &mut zeros);
        prop_assert_eq!(ones, zeros);
    });
}

/// Reads one byte.
pub(crate) fn inb(device: &dyn BusDevice, offset: u64) -> u8 {
    let mut data = [0];
    device.read(offset, &mut data);
    data[0]
}

/// Writes one byte.
pub(crate) fn outb(device: &dyn BusDevice, offset: u64, value: u8) {
    device.write(offset, &[value]);
}

/// Reads 32 bits.
pub(crate) fn readl(device: &dyn BusDevice, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// Writes 32 bits.
pub(crate) fn writel(device: &dyn BusDevice, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}
