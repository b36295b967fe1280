//! An entry of the redirection table (82093AA, section 3.2.4).

use pci::MsiMessage;

const VECTOR: u64 = 0xff;
/// Delivery mode, three bits; the same bits in an MSI's data.
const DELIVERY_MODE: u64 = 7 << 8;
/// Destination mode: logical.
const LOGICAL: u64 = 1 << 11;
/// A level-triggered interrupt was sent and not ended yet; read-only.
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bits of the low half that the guest can write: all but the delivery status (12), which is
/// always idle, and the remote IRR.
const LOW_WRITABLE: u64 = 0x1_afff;
/// Bits of the high half that the guest can write: the destination id in 63:56, and its bits 14:8
/// in 55:49 (reserved on real hardware).
const HIGH_WRITABLE: u64 = 0xfffe_0000_0000_0000;
const DESTINATION_SHIFT: u32 = 56;
const EXTENDED_DESTINATION_SHIFT: u32 = 49;

/// Where the local APICs' interrupt messages go (Intel SDM volume 3, section 12.11.1).
const MSI_BASE: u64 = 0xfee0_0000;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_EXTENDED_DESTINATION_SHIFT: u32 = 5;
const MSI_DESTINATION_SHIFT: u32 = 12;
/// Level-triggered and asserted (section 12.11.2).
const MSI_LEVEL: u32 = 3 << 14;

/// A redirection entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry(u64);

impl Default for Entry {
    /// The entry after reset: masked.
    fn default() -> Self {
        Self(MASKED)
    }
}

impl Entry {
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits & (LOW_WRITABLE | HIGH_WRITABLE | REMOTE_IRR)).normalised()
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    pub(super) fn write_low(&mut self, value: u32) {
        let kept = self.0 & !LOW_WRITABLE;
        *self = Self(kept | u64::from(value) & LOW_WRITABLE).normalised();
    }

    pub(super) fn write_high(&mut self, value: u32) {
        let kept = self.0 & !HIGH_WRITABLE;
        *self = Self(kept | u64::from(value) << 32 & HIGH_WRITABLE);
    }

    /// An edge-triggered entry has no remote IRR; switching to edge and back is how a guest
    /// without an EOI register clears it.
    fn normalised(self) -> Self {
        if self.level() {
            self
        } else {
            Self(self.0 & !REMOTE_IRR)
        }
    }

    pub(super) fn vector(self) -> u8 {
        (self.0 & VECTOR) as u8
    }

    pub(super) fn level(self) -> bool {
        self.0 & LEVEL != 0
    }

    pub(super) fn masked(self) -> bool {
        self.0 & MASKED != 0
    }

    pub(super) fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    pub(super) fn set_remote_irr(&mut self, pending: bool) {
        if pending {
            self.0 |= REMOTE_IRR;
        } else {
            self.0 &= !REMOTE_IRR;
        }
    }

    /// The interrupt as a message to the local APICs.
    pub(super) fn message(self) -> MsiMessage {
        let destination = self.0 >> DESTINATION_SHIFT;
        let extended = self.0 >> EXTENDED_DESTINATION_SHIFT & 0x7f;
        let logical = if self.0 & LOGICAL != 0 {
            MSI_LOGICAL
        } else {
            0
        };
        let level = if self.level() { MSI_LEVEL } else { 0 };
        MsiMessage {
            address: MSI_BASE
                | destination << MSI_DESTINATION_SHIFT
                | extended << MSI_EXTENDED_DESTINATION_SHIFT
                | logical,
            data: (self.0 & (VECTOR | DELIVERY_MODE)) as u32 | level,
        }
    }
}
