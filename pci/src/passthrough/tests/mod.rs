//! A guest's view of a device that has a bit of everything.

mod guest;
mod hidden;
mod interrupts;
mod loss;
mod probing;
mod properties;
mod races;
mod writes;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::device::IrqKind;
use crate::testing::{Call, FakeDevice, FakeLine, FakeMsi, FakeSpace, Mood, SharedSpace};
use crate::{MsiMessage, ResampledLine, Space};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What the device keeps in registers that are nobody's business.
const SECRET: u8 = 0xcc;

/// Capabilities of the device, in the order of its list: offset, id, and bytes behind the header.
const CAPABILITIES: [(u8, u8, &[u8]); 9] = [
    // PM 1.2: version 3, PME from every state, D1 and D2; in D3hot, PME on, 0x77 for data.
    (0x40, 0x01, &[0xc3, 0xff, 0x03, 0xe1, 0x00, 0x77]),
    (0xd0, 0x08, &[SECRET; 6]),
    // MSI: up to 8 vectors, 64 bits, maskable; set up by somebody else.
    (
        0x48,
        0x05,
        &[
            0x87, 0x01, 0xe0, 0xee, 0xe0, 0xfe, 0x01, 0, 0, 0, 0x55, 0x55, 0, 0, 0xff, 0xff, 0xff,
            0xff, 1, 1, 1, 1,
        ],
    ),
    (0x60, 0x10, &EXPRESS),
    // Vendor-specific: 16 bytes.
    (
        0xa0,
        0x09,
        &[0x10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
    ),
    // MSI-X: 8 vectors, on; table and pending bits in BAR 0 at 0xb90000 and 0xba0000.
    (0xb0, 0x11, &[0x07, 0x80, 0, 0, 0xb9, 0, 0, 0, 0xba, 0]),
    (0xd8, 0x0d, &[0, 0, 0xde, 0x10, 0xeb, 0x16]),
    (0xc0, 0x03, &[0, 0x80, 1, 2, 3, 4]),
    // AF: transactions pending, FLR; transactions are pending.
    (0xc8, 0x13, &[6, 0x03, 0, 0x01]),
];

/// PCI Express, version 2: an endpoint with everything set that can be.
const EXPRESS: [u8; 58] = {
    let mut body = [0xff; 58];
    // Interrupt message 1, endpoint, version 2.
    body[0] = 0x02;
    body[1] = 0x02;
    // Device control: payloads of 256 bytes, requests of 4 KiB, tags of 8 bits, error messages.
    body[6] = 0x2f;
    body[7] = 0x51;
    body
};

/// Extended capabilities, in the order of the list: offset, id, and bytes behind the header.
const EXTENDED: [(u16, u16, &[u8]); 13] = [
    (0x100, 0x01, &[SECRET; 0x44]),
    (0x148, 0x03, &[1, 2, 3, 4, 5, 6, 7, 8]),
    (0x160, 0x10, &[SECRET; 0x3c]),
    // DVSEC: vendor 0x10de, revision 1, 24 bytes; id 7.
    (
        0x1a0,
        0x23,
        &[
            0xde, 0x10, 0x81, 0x01, 0x07, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9,
        ],
    ),
    (0x1c0, 0x18, &[SECRET; 4]),
    // VSEC: id 2, revision 1, 16 bytes.
    (0x1d0, 0x0b, &[0x02, 0, 0x01, 0x01, 8, 8, 8, 8, 8, 8, 8, 8]),
    (0x200, 0x0f, &[SECRET; 4]),
    (0x210, 0x13, &[SECRET; 12]),
    (0x220, 0x1b, &[SECRET; 4]),
    (0x230, 0x0e, &[SECRET; 4]),
    (0x240, 0x1e, &[SECRET; 12]),
    (0x260, 0x15, &[SECRET; 12]),
    (0x280, 0x00, &[SECRET; 12]),
];

/// Configuration space of the device.
fn config() -> Vec<u8> {
    let mut config = vec![SECRET; SIZE];
    config[..0x40].fill(0);
    let mut put = |offset: usize, bytes: &[u8]| {
        config[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    // Ids; memory, parity errors and SERR#; capabilities; class; header with more functions; BIST.
    put(0, &[0xde, 0x10, 0x42, 0x23, 0x42, 0x01, 0x10, 0x00]);
    put(8, &[0xa1, 0x00, 0x02, 0x03, 0x10, 0x20, 0x80, 0x80]);
    // Memory of 32 bits, ports, twice prefetchable memory of 64 bits; CardBus.
    put(0x14, &[1, 0, 0, 0, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0x0c]);
    put(0x28, &[SECRET; 4]);
    put(0x2c, &[0xde, 0x10, 0xeb, 0x16, 1, 0, 0xfe, 0xff, 0x40]);
    put(0x35, &[SECRET; 7]);
    put(0x3c, &[0x55, 2, 7, 9]);
    let next = |index: usize| CAPABILITIES.get(index + 1).map_or(0, |next| next.0);
    for (index, (at, id, body)) in CAPABILITIES.iter().enumerate() {
        put(usize::from(*at), &[*id, next(index)]);
        put(usize::from(*at) + 2, body);
    }
    let next = |index: usize| EXTENDED.get(index + 1).map_or(0, |next| next.0);
    for (index, (at, id, body)) in EXTENDED.iter().enumerate() {
        let header = u32::from(*id) | 1 << 16 | u32::from(next(index)) << 20;
        put(usize::from(*at), &header.to_le_bytes());
        put(usize::from(*at) + 4, body);
    }
    config
}

/// A device with all of the above: registers, ports, reserved memory, coherent memory.
fn device() -> FakeDevice {
    let mut device = FakeDevice::new(config());
    device.set_region(0, 16 * MIB, &[(0, 16 * MIB)]);
    device.set_region(1, 24, &[]);
    device.set_region(2, GIB, &[(0, GIB)]);
    device.set_region(4, 128 * GIB, &[(0, 0x17_2000_0000)]);
    device.irqs = [1, 4, 6];
    device
}

/// Where firmware puts the BARs.
const ADDRESSES: [Option<u64>; 4] = [
    Some(0xc000_0000),
    Some(0x6000),
    Some(0x40_0000_0000),
    Some(0x80_0000_0000),
];

/// A guest with the function.
struct Rig {
    device: Arc<FakeDevice>,
    space: Arc<FakeSpace>,
    msi: Arc<FakeMsi>,
    line: Arc<FakeLine>,
    losses: Arc<AtomicUsize>,
    function: Arc<PassthroughFunction>,
}

impl Rig {
    fn new() -> Self {
        Self::with(device())
    }

    fn with(device: FakeDevice) -> Self {
        let facts = probe(&device, None, &[]).unwrap();
        Self::planned(
            device,
            &facts,
            &ADDRESSES[..facts.bars.len()],
            FakeSpace::default(),
        )
    }

    fn planned(
        device: FakeDevice,
        facts: &DeviceFacts,
        bars: &[Option<u64>],
        space: FakeSpace,
    ) -> Self {
        let device = Arc::new(device);
        let space = Arc::new(space);
        let msi = Arc::new(FakeMsi::new(100));
        let line = Arc::new(FakeLine::new());
        let losses = Arc::new(AtomicUsize::new(0));
        device.calls();
        let function = PassthroughFunction::new(Wiring {
            device: Arc::clone(&device) as SharedDevice,
            facts,
            bars,
            bdf: Bdf {
                segment: 0,
                device: 5,
            },
            space: Arc::new(SharedSpace(Arc::clone(&space))),
            msi: Arc::clone(&msi) as Arc<dyn MsiSource>,
            intx: Some(IntxWiring {
                line: Arc::clone(&line) as Arc<dyn ResampledLine>,
                pin: 1,
                number: 11,
            }),
            exclude_mmap_bars: &[],
            on_lost: {
                let losses = Arc::clone(&losses);
                Box::new(move |error| {
                    assert!(matches!(error, DeviceError::Lost(_)));
                    losses.fetch_add(1, Ordering::SeqCst);
                })
            },
        })
        .unwrap();
        Self {
            device,
            space,
            msi,
            line,
            losses,
            function,
        }
    }

    fn bytes<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0x5a; N];
        self.function.read_config(offset, &mut data);
        data
    }

    fn u8(&self, offset: u16) -> u8 {
        u8::from_le_bytes(self.bytes(offset))
    }

    fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    fn u32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    fn set_u8(&self, offset: u16, value: u8) {
        self.function.write_config(offset, &value.to_le_bytes());
    }

    fn set_u16(&self, offset: u16, value: u16) {
        self.function.write_config(offset, &value.to_le_bytes());
    }

    fn set_u32(&self, offset: u16, value: u32) {
        self.function.write_config(offset, &value.to_le_bytes());
    }

    /// Offsets and ids of the capabilities that a guest finds.
    fn list(&self) -> Vec<(u16, u8)> {
        let mut list = Vec::new();
        let mut at = self.u8(0x34);
        while at != 0 {
            assert!(list.len() < 48, "{list:x?}");
            let [id, next] = self.bytes(at.into());
            list.push((at.into(), id));
            at = next;
        }
        list
    }

    /// Offsets and ids of the extended capabilities that a guest finds, null ones included.
    fn extended_list(&self) -> Vec<(u16, u16)> {
        let mut list = Vec::new();
        let mut at = 0x100;
        while at != 0 && self.u32(at) != 0 {
            assert!(list.len() < 960, "{list:x?}");
            let header = self.u32(at);
            list.push((at, header as u16));
            at = (header >> 20) as u16;
        }
        list
    }

    /// What a vCPU reads from guest memory.
    fn memory_u32(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.space.read(Space::Memory, address, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_memory_u32(&self, address: u64, value: u32) {
        self.space
            .write(Space::Memory, address, &value.to_le_bytes());
    }

    /// Where the machine must have the BARs, going by what a guest reads.
    fn decoded(&self) -> Vec<Option<u64>> {
        let config = lock(&self.function.config);
        lock(&self.function.placed).bars.wanted(&config)
    }

    fn messages(&self) -> Vec<Option<MsiMessage>> {
        self.msi.vectors().iter().map(|v| v.message()).collect()
    }
}

const PM: u16 = 0x40;
const MSI: u16 = 0x48;
const PCIE: u16 = 0x60;
const VENDOR: u16 = 0xa0;
const MSIX: u16 = 0xb0;
const VPD: u16 = 0xc0;
const AF: u16 = 0xc8;

const COMMAND: u16 = 4;
const IO: u16 = 1;
const MEMORY: u16 = 2;
const BUS_MASTER: u16 = 4;
const INTX_DISABLE: u16 = 1 << 10;
