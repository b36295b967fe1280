//! As much of a PC's NMI status and control register, port 0x61, as it takes to tell a guest that an NMI
//! comes from nowhere in particular: the operator.
//!
//! A guest asks this port where an NMI comes from (Intel 100 Series PCH datasheet, volume 2, "NMI Status and
//! Control (NMI_STS_CNT)"). Ones, as an empty bus reads, would be an error of a memory or of a PCI
//! device, and Linux would not do what its administrator wants done at an unknown NMI.

use crate::bus::BusDevice;

/// The port.
pub const PORT: u16 = 0x61;

/// The output of timer 2, which there is not: on, as Linux waits for that when it looks for a timer to measure by.
const TIMER_2_OUTPUT: u8 = 1 << 5;

/// The register. What it could turn on, errors and the speaker, is not there, so writes change nothing.
pub struct NmiStatus;

impl BusDevice for NmiStatus {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(TIMER_2_OUTPUT);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{inb, never_panics};

    #[test]
    fn nobody_has_caused_an_nmi_and_the_timer_is_not_waited_for() {
        let (pci_error, channel_check) = (1 << 7, 1 << 6);
        for written in [0, 0xff] {
            NmiStatus.write(0, &[written]);
            let status = inb(&NmiStatus, 0);
            assert_eq!(status & (pci_error | channel_check), 0);
            assert_ne!(status & 1 << 5, 0);
        }
    }

    #[test]
    fn no_access_panics() {
        never_panics(|| NmiStatus);
    }
}
