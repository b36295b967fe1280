//! A guest's view of a device's configuration space, as it is before the guest has touched it.

use std::ops::Range;

use super::FunctionError;
use super::capabilities::{Capabilities, Offsets};
use super::filter::Filter;
use super::interrupts::Wanted;
use super::intx::IntxWiring;
use super::msix::{self, MsixLayout};
use super::reader::Reader;
use crate::config_space::{
    Bar, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEMORY, ConfigSpace, offset,
};
use crate::device::Device;
use crate::{BarFacts, DeviceFacts};

/// Bits of the command register that are the guest's; the others stay as the host has them.
const COMMAND_GUEST: u16 = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
/// Status bits that are the device's: immediate readiness, interrupt status, 66 MHz and fast
/// back-to-back, DEVSEL timing, and the errors, which are cleared by ones.
const STATUS_SHOWN: u16 = STATUS_ERRORS | 1 << 0 | 1 << 3 | 1 << 5 | 1 << 7 | 3 << 9;
const STATUS_ERRORS: u16 = 1 << 8 | 0x1f << 11;

/// What a function is made of, but for what changes.
pub(super) struct Header {
    /// The emulated part, as it is at the start.
    pub space: ConfigSpace,
    /// What is the device's.
    pub filter: Filter,
    /// Where the capabilities are.
    pub offsets: Offsets,
    /// The device's command register, as the host has set it up.
    host_command: u16,
}

impl Header {
    /// Reads what the device has, and decides what the guest sees of it. `bars` are those that it
    /// is shown, with their addresses at the start.
    pub fn new(
        device: &dyn Device,
        facts: &DeviceFacts,
        bars: &[(BarFacts, u64)],
        intx: Option<&IntxWiring>,
    ) -> Result<Self, FunctionError> {
        let reader = Reader::new(device).ok_or(FunctionError::NoConfig)?;
        let mut space = ConfigSpace::new(&facts.identity);
        let mut filter = Filter::new();
        for (bar, address) in bars {
            let BarFacts {
                index,
                kind,
                size,
                mappable: _,
            } = *bar;
            let register = usize::from(index);
            space.add_bar(register, Bar { kind, size })?;
            space.set_bar_address(register, *address);
        }
        if let Some(intx) = intx {
            space.set_interrupt_pin(intx.pin, intx.number);
        }
        for register in [offset::CACHE_LINE_SIZE, offset::LATENCY_TIMER] {
            filter.show(register, &[0xff]);
            filter.pass(register, &[0xff]);
        }
        filter.show(offset::MIN_GRANT, &[0xff]);
        filter.show(offset::MAX_LATENCY, &[0xff]);
        filter.show(offset::STATUS, &STATUS_SHOWN.to_le_bytes());
        filter.pass(offset::STATUS, &STATUS_ERRORS.to_le_bytes());
        let host_command = reader.u16(offset::COMMAND)?;
        let shown: Vec<BarFacts> = bars.iter().map(|(bar, _)| *bar).collect();
        let offsets = Capabilities {
            reader: &reader,
            device,
            bars: &shown,
            space: &mut space,
            filter: &mut filter,
        }
        .place()?;
        Ok(Self {
            space,
            filter,
            offsets,
            host_command,
        })
    }

    /// What the device's command register is to be while the guest's is `command`.
    pub fn device_command(&self, command: u16) -> u16 {
        self.host_command & !COMMAND_GUEST | command & COMMAND_GUEST
    }

    /// Where accesses to MSI and MSI-X lie.
    pub fn interrupt_registers(&self) -> Vec<Range<usize>> {
        let msi = self.offsets.msi.iter();
        let msi = msi.map(|msi| msi.offset..msi.offset + msi.size());
        let msix = self.shown_msix().into_iter();
        let msix = msix.map(|msix| msix.offset + msix::CONTROL..msix.offset + msix::CONTROL + 2);
        msi.chain(msix).collect()
    }

    /// What a function's space says about interrupts.
    pub fn wanted_interrupts(&self, space: &ConfigSpace) -> Wanted {
        let msix = self.shown_msix();
        let msi = self.offsets.msi.as_ref();
        Wanted {
            msix_control: msix.map_or(0, |msix| space.u16_at(msix.offset + msix::CONTROL)),
            msi: msi.and_then(|msi| msi.settings(space)),
            intx_disabled: space.u16_at(offset::COMMAND) & COMMAND_INTX_DISABLE != 0,
        }
    }

    fn shown_msix(&self) -> Option<&MsixLayout> {
        let msix = self.offsets.msix.as_ref();
        msix.filter(|msix| msix.vectors > 0)
    }
}
