//! What a host bridge and the guest's system agree on: `_OSC` and `_DSM`.

use acpi_tables::aml::{
    And, Arg, BufferData, CreateDWordField, Else, Equal, GreaterEqual, If, Local, Method, NotEqual,
    ONE, Or, Path, Return, SizeOf, Store, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};

/// `_OSC` of a host bridge (PCI Firmware Specification 3.3, section 4.5.1; ACPI 6.5, section 6.2.11).
///
/// The system gets the PCI Express capability, without which Linux asks for nothing and leaves the
/// Express settings of functions as they are. It gets nothing of which there is none: hot plug, power
/// management events, error reporting and latency tolerance need ports, which this machine does not
/// have. Nothing is remembered, so a query and a request have the same answer.
pub(super) struct OsCapabilities;

/// Interface of PCI host bridges.
const HOST_BRIDGE: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
const HOST_BRIDGE_REVISION: u8 = 1;

/// Bits of the first DWord, which says what became of the request.
mod status {
    pub(super) const FAILURE: u8 = 1 << 1;
    pub(super) const UNKNOWN_UUID: u8 = 1 << 2;
    pub(super) const UNKNOWN_REVISION: u8 = 1 << 3;
    pub(super) const MASKED: u8 = 1 << 4;
}

/// Bit of the third DWord, control: the PCI Express capability structures.
const EXPRESS_CAPABILITY: u8 = 1 << 4;
/// Where the control DWord is, and what a buffer has that holds it, in bytes.
const CONTROL_AT: u8 = 8;
const BUFFER_SIZE: u8 = 12;

impl Aml for OsCapabilities {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, revision, buffer) = (Arg(0), Arg(1), Arg(3));
        let status = Path::new("CDW1");
        let control = Path::new("CDW3");
        let granted = Local(0);
        let set = |bit: &'static u8| Or::new(&status, &status, bit);
        Method::new(
            "_OSC".into(),
            4,
            // Serialized, because it creates names.
            true,
            vec![
                &CreateDWordField::new(&status, &buffer, &ZERO),
                &If::new(
                    &NotEqual::new(&uuid, &Uuid::new(HOST_BRIDGE)),
                    vec![&set(&status::UNKNOWN_UUID), &Return::new(&buffer)],
                ),
                &If::new(
                    &NotEqual::new(&revision, &HOST_BRIDGE_REVISION),
                    vec![&set(&status::UNKNOWN_REVISION), &Return::new(&buffer)],
                ),
                &If::new(
                    &GreaterEqual::new(&SizeOf::new(&buffer), &BUFFER_SIZE),
                    vec![
                        &CreateDWordField::new(&control, &buffer, &CONTROL_AT),
                        &And::new(&granted, &control, &EXPRESS_CAPABILITY),
                        &If::new(
                            &NotEqual::new(&granted, &control),
                            vec![&set(&status::MASKED)],
                        ),
                        &Store::new(&control, &granted),
                    ],
                ),
                &Else::new(vec![&set(&status::FAILURE)]),
                &Return::new(&buffer),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// `_DSM` of a host bridge (PCI Firmware Specification 3.3, section 4.6.5): the system must keep the
/// addresses that firmware gave to BARs.
///
/// The plan has them, for this boot and for those that come, with room for what is not there yet.
pub(super) struct BootConfiguration;

/// Functions of PCI devices and bridges.
const PCI: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";
/// Which functions there are.
const QUERY: u8 = 0;
/// Whether the system may ignore what firmware configured.
const IGNORE_BOOT_CONFIGURATION: u8 = 5;

impl Aml for BootConfiguration {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, revision, function) = (Arg(0), Arg(1), Arg(2));
        let functions = BufferData::new(vec![1 << QUERY | 1 << IGNORE_BOOT_CONFIGURATION]);
        let none = BufferData::new(vec![0]);
        Method::new(
            "_DSM".into(),
            4,
            false,
            vec![
                &If::new(
                    &Equal::new(&uuid, &Uuid::new(PCI)),
                    vec![&If::new(
                        // Each revision has all of those before it.
                        &GreaterEqual::new(&revision, &ONE),
                        vec![
                            &If::new(
                                &Equal::new(&function, &QUERY),
                                vec![&Return::new(&functions)],
                            ),
                            &If::new(
                                &Equal::new(&function, &IGNORE_BOOT_CONFIGURATION),
                                vec![&Return::new(&ZERO)],
                            ),
                        ],
                    )],
                ),
                &Return::new(&none),
            ],
        )
        .to_aml_bytes(sink);
    }
}
