//! The nodes by which processors and the plan's devices announce themselves in the DSDT.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If,
    Local, Method, Name, Notify, OpRegion, OpRegionSpace, Path, ResourceTemplate, Store, ZERO,
};
use devices::acpi::GedEvent;
use pci::AcpiNode;

use super::resources::{Encoded, RegisterResource, Trigger, interrupt};
use crate::plan::{EventDevicePlan, Registers, SerialPlan};

/// Notification value by which a power button says that it was pressed (ACPI 6.5, section 5.6.6).
const NOTIFY_BUTTON_PRESSED: u8 = 0x80;

/// The power button's path, for the event device to notify.
const POWER_BUTTON: &str = "PWRB";

impl AcpiNode for SerialPlan {
    /// A 16550 (`PNP0501`) at I/O ports, or a PL011 (`ARMH0011`) in memory.
    fn aml(&self) -> Box<dyn Aml + '_> {
        let (hid, trigger): (&dyn Aml, _) = match self.registers {
            Registers::Pio { .. } => (&EISAName::new("PNP0501"), Trigger::Edge),
            Registers::Mmio(_) => (&"ARMH0011", Trigger::Level),
        };
        Encoded::boxed(&Device::new(
            "SER0".into(),
            vec![
                &Name::new("_HID".into(), hid),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &RegisterResource(self.registers),
                        &interrupt(self.gsi, trigger),
                    ]),
                ),
            ],
        ))
    }
}

/// The CMOS real-time clock, `PNP0B00`. It has no interrupt, so no alarm.
///
/// A PL031 has no node: no ACPI id is assigned to it and no driver would bind.
pub(super) struct CmosClock {
    /// Its ports.
    pub(super) registers: Registers,
}

impl AcpiNode for CmosClock {
    fn aml(&self) -> Box<dyn Aml + '_> {
        Encoded::boxed(&Device::new(
            "RTC0".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&RegisterResource(self.registers)]),
                ),
            ],
        ))
    }
}

/// The control-method power button, `PNP0C0C`; the event device notifies it.
pub(super) struct PowerButton;

impl AcpiNode for PowerButton {
    fn aml(&self) -> Box<dyn Aml + '_> {
        Encoded::boxed(&Device::new(
            POWER_BUTTON.into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
                &Name::new("_UID".into(), &ZERO),
            ],
        ))
    }
}

impl AcpiNode for EventDevicePlan {
    /// The Generic Event Device, `ACPI0013`. Its `_CRS` holds interrupts only (ACPI 6.5, section
    /// 5.6.9); `_EVT` reads the event register once, which clears it, and passes each bit on.
    fn aml(&self) -> Box<dyn Aml + '_> {
        const REGION: &str = "EREG";
        let (space, address) = match self.registers {
            Registers::Pio { base, .. } => (OpRegionSpace::SystemIO, u64::from(base)),
            Registers::Mmio(range) => (OpRegionSpace::SystemMemory, range.start),
        };
        let pending = Local(0);
        Encoded::boxed(&Device::new(
            "GED0".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&interrupt(self.gsi, Trigger::Edge)]),
                ),
                &OpRegion::new(REGION.into(), space, &address, &1u8),
                &Field::new(
                    REGION.into(),
                    FieldAccessType::Byte,
                    FieldLockRule::NoLock,
                    FieldUpdateRule::WriteAsZeroes,
                    vec![FieldEntry::Named(*b"EVTS", 8)],
                ),
                &Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![
                        &Store::new(&pending, &Path::new("EVTS")),
                        &If::new(
                            &And::new(&ZERO, &pending, &GedEvent::PowerButton.mask()),
                            vec![&Notify::new(
                                &Path::new(POWER_BUTTON),
                                &NOTIFY_BUTTON_PRESSED,
                            )],
                        ),
                    ],
                ),
            ],
        ))
    }
}

/// `_STA` of a CPU (ACPI 6.5, section 6.3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CpuStatus {
    /// Present, enabled, shown and functioning.
    Enabled,
    /// Not there.
    Absent,
}

impl CpuStatus {
    fn bits(self) -> u8 {
        match self {
            Self::Enabled => 0b1111,
            Self::Absent => 0,
        }
    }
}

/// A processor, `ACPI0007`.
pub(super) struct CpuNode {
    /// Index in the plan; its `_UID`.
    pub(super) index: u32,
    /// Its `_STA`.
    pub(super) status: CpuStatus,
}

/// The most processors that [`CpuNode`] has names for, and packages that [`PackageNode`] has: names
/// of packages with higher numbers are those of [host bridges](super::host_bridge).
pub(super) const MAX_CPU_NAMES: u32 = BRIDGE_NAMES;

/// What the name `PC00` has after its first letter.
pub(super) const BRIDGE_NAMES: u32 = 0xc00;

impl AcpiNode for CpuNode {
    /// Written out, because a machine has hundreds of them and the general encoder allocates some
    /// thirty times for each.
    fn aml(&self) -> Box<dyn Aml + '_> {
        /// DeviceOp with its prefix, and a place for a PkgLength of one byte: up to 63 bytes.
        const DEVICE: [u8; 3] = [0x5b, 0x82, 0];
        const LENGTH_AT: usize = 2;
        /// NameOp is 0x08, StringPrefix 0x0d (ACPI 6.5, section 20.2).
        const HID_AND_UID: &[u8] = b"\x08_HID\x0dACPI0007\0\x08_UID";
        const STA: &[u8] = b"\x08_STA";

        let mut term = Vec::with_capacity(64);
        term.extend_from_slice(&DEVICE);
        term.extend_from_slice(&numbered(b'C', self.index));
        term.extend_from_slice(HID_AND_UID);
        self.index.to_aml_bytes(&mut term);
        term.extend_from_slice(STA);
        self.status.bits().to_aml_bytes(&mut term);
        // At most 35: `index` takes three bytes, as it is below MAX_CPU_NAMES, and _STA two.
        term[LENGTH_AT] = (term.len() - LENGTH_AT) as u8;
        Box::new(Encoded(term))
    }
}

/// A package of processors, `ACPI0010`: what the PPTT's package node refers to. Without it Linux
/// shows the node's offset in the table as the package's id.
pub(super) struct PackageNode {
    /// Package number in the plan; its `_UID`.
    pub(super) package: u32,
    /// The processors in it.
    pub(super) cpus: Vec<CpuNode>,
}

impl AcpiNode for PackageNode {
    fn aml(&self) -> Box<dyn Aml + '_> {
        let hid = Name::new("_HID".into(), &"ACPI0010");
        let uid = Name::new("_UID".into(), &self.package);
        let cpus: Vec<_> = self.cpus.iter().map(AcpiNode::aml).collect();
        let mut children: Vec<&dyn Aml> = vec![&hid, &uid];
        children.extend(cpus.iter().map(|cpu| &**cpu as &dyn Aml));
        let path = name(numbered(b'P', self.package));
        Encoded::boxed(&Device::new(path, children))
    }
}

/// A path of one name.
pub(super) fn name(name: [u8; 4]) -> Path {
    Path::new(&String::from_utf8_lossy(&name))
}

/// A name of a letter and three hexadecimal digits.
pub(super) fn numbered(letter: u8, number: u32) -> [u8; 4] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |shift: u32| DIGITS[(number >> shift & 0xf) as usize];
    [letter, digit(8), digit(4), digit(0)]
}
