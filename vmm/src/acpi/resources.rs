//! Resource descriptors for the `_CRS` of a device, and encoded AML terms.

use acpi_tables::aml;
use acpi_tables::{Aml, AmlSink};

use crate::plan::{GpaRange, Gsi, Registers};

/// A term that is encoded already, so that it can leave the function that made its parts.
pub(super) struct Encoded(pub(super) Vec<u8>);

impl Encoded {
    /// `term`, encoded and boxed as [`pci::AcpiNode::aml`] wants it.
    pub(super) fn boxed(term: &dyn Aml) -> Box<dyn Aml> {
        let mut bytes = Vec::new();
        term.to_aml_bytes(&mut bytes);
        Box::new(Self(bytes))
    }
}

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The most ports that an I/O port descriptor can say (ACPI 6.5, section 6.4.2.5).
pub(super) const MAX_PORTS: u16 = u8::MAX as u16;

/// A device's registers, as a resource that it consumes.
pub(super) struct RegisterResource(pub(super) Registers);

impl Aml for RegisterResource {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        match self.0 {
            Registers::Pio { base, size } => {
                let size = u8::try_from(size).unwrap_or(u8::MAX);
                aml::IO::new(base, base, 1, size).to_aml_bytes(sink);
            }
            Registers::Mmio(range) => match narrow(range) {
                Some((base, size)) => {
                    aml::Memory32Fixed::new(true, base, size).to_aml_bytes(sink);
                }
                None => qword_memory(range, sink),
            },
        }
    }
}

/// Base and size of a range that a 32-bit descriptor can hold.
pub(super) fn narrow(range: GpaRange) -> Option<(u32, u32)> {
    let base = u32::try_from(range.start).ok()?;
    let size = u32::try_from(range.size).ok()?;
    base.checked_add(size.checked_sub(1)?)?;
    Some((base, size))
}

/// QWord address space descriptor (ACPI 6.5, section 6.4.3.5.1) of memory that the device consumes.
/// `acpi_tables` has only the producer's, which guests take for a window of a bridge.
fn qword_memory(range: GpaRange, sink: &mut dyn AmlSink) {
    const DESCRIPTOR: u8 = 0x8a;
    const BODY_SIZE: u16 = 43;
    const MEMORY: u8 = 0;
    /// Consumer, positive decode, minimum and maximum fixed.
    const GENERAL_FLAGS: u8 = 1 << 0 | 1 << 2 | 1 << 3;
    /// Writable, not cacheable.
    const TYPE_FLAGS: u8 = 1;

    sink.byte(DESCRIPTOR);
    sink.word(BODY_SIZE);
    sink.vec(&[MEMORY, GENERAL_FLAGS, TYPE_FLAGS]);
    sink.qword(0);
    sink.qword(range.start);
    sink.qword(range.start.saturating_add(range.size.saturating_sub(1)));
    sink.qword(0);
    sink.qword(range.size);
}

/// How an interrupt line signals.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trigger {
    /// By a rising edge.
    Edge,
    /// By its level.
    Level,
}

/// An active-high interrupt that one device alone consumes.
pub(super) fn interrupt(gsi: Gsi, trigger: Trigger) -> aml::Interrupt {
    aml::Interrupt::new(true, trigger == Trigger::Edge, false, false, gsi)
}
