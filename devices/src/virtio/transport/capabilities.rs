//! Where registers lie, as configuration space says it (section 4.1.4), and a window to them for those
//! who cannot reach BARs.

use std::ops::Range;
use std::sync::Arc;

use pci::Region;
use pci::config_space::ConfigSpace;
use pci::emulated::{Capability, ConfigHook};

use super::registers::SIZE as COMMON_SIZE;
use super::{BAR, place};

/// Id of a capability that the vendor defines.
const VENDOR: u8 = 0x09;
/// What a capability is about (`cfg_type`).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
const WINDOW: u8 = 5;

/// The window's capability among all.
const WINDOW_POSITION: usize = 4;
/// Offsets in it.
const BAR_AT: usize = 4;
const OFFSET_AT: usize = 8;
const LENGTH_AT: usize = 12;
const DATA_AT: usize = 16;
/// Bytes of the window.
const DATA_SIZE: usize = 4;

/// All capabilities, in their order.
pub(super) fn all() -> Vec<Capability> {
    let plain = |kind, offset: u64, length: u64| capability(kind, offset, length, &[], &[]);
    let step = (place::NOTIFY_STEP as u32).to_le_bytes();
    // Which BAR, where and how much, and what is read or written there.
    let mut window = vec![0; 14 + DATA_SIZE];
    for (at, size) in [
        (BAR_AT, 1),
        (OFFSET_AT, 4),
        (LENGTH_AT, 4),
        (DATA_AT, DATA_SIZE),
    ] {
        // Behind id and pointer.
        let at = at - 2;
        window[at..at + size].fill(0xff);
    }
    vec![
        plain(COMMON, place::COMMON, COMMON_SIZE as u64),
        capability(
            NOTIFY,
            place::NOTIFY,
            place::MSIX_TABLE - place::NOTIFY,
            &step,
            &[],
        ),
        plain(ISR, place::ISR, 1),
        plain(DEVICE, place::DEVICE, place::DEVICE_SIZE),
        capability(WINDOW, 0, 0, &[0; DATA_SIZE], &window),
    ]
}

/// `struct virtio_pci_cap` behind id and pointer, and what follows it.
fn capability(kind: u8, offset: u64, length: u64, rest: &[u8], writable: &[u8]) -> Capability {
    const HEADER: u8 = 16;
    let mut body = vec![HEADER + rest.len() as u8, kind, BAR, 0, 0, 0];
    // All is in the first 64 KiB.
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(rest);
    Capability {
        id: VENDOR,
        body,
        writable: writable.to_vec(),
    }
}

/// Registers through configuration space (section 4.1.4.9).
pub(super) struct Window(Arc<dyn Region>);

impl Window {
    /// A window to a region.
    pub fn of(region: Arc<dyn Region>) -> Self {
        Self(region)
    }

    /// What the driver has pointed it at, if that is something: an aligned access of 1, 2 or 4 bytes.
    fn target(space: &ConfigSpace, capability: usize) -> Option<(u64, usize)> {
        let mut bar = [0];
        space.read(capability + BAR_AT, &mut bar);
        let offset = space.u32_at(capability + OFFSET_AT);
        let length = space.u32_at(capability + LENGTH_AT);
        let fits = bar == [BAR] && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        fits.then_some((offset.into(), length as usize))
    }
}

impl ConfigHook for Window {
    fn capability(&self) -> usize {
        WINDOW_POSITION
    }

    fn registers(&self) -> Range<usize> {
        DATA_AT..DATA_AT + DATA_SIZE
    }

    fn read(&self, space: &mut ConfigSpace, capability: usize, _touched: Range<usize>) {
        if let Some((offset, length)) = Self::target(space, capability) {
            let mut data = [0; DATA_SIZE];
            if let Some(wanted) = data.get_mut(..length) {
                self.0.read(offset, wanted);
            }
            space.set(capability + DATA_AT, &data);
        }
    }

    fn written(&self, space: &mut ConfigSpace, capability: usize, _touched: Range<usize>) {
        if let Some((offset, length)) = Self::target(space, capability) {
            let data = space.u32_at(capability + DATA_AT).to_le_bytes();
            if let Some(given) = data.get(..length) {
                self.0.write(offset, given);
            }
        }
    }
}
