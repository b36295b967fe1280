//! Plans as data: what is stored, and what is planned for devices that come later.

use super::*;
use crate::plan::{firmware, numa};

/// A machine with something of everything.
const EVERYTHING: &str = "--cpus boot=2 --memory size=4G,shared=on \
    --platform num_pci_segments=3 --numa guest_numa_id=0,cpus=[0-1],memory_zones=[mem0],pci_segments=[1] \
    --device path=/a,id=a,guest_numa_ids=auto,pci_segment=1,pci_device_id=0 path=/b,id=b \
    --user-device socket=/c,id=c,guest_numa_ids=auto:3,pci_segment=2";

#[test]
fn the_same_input_makes_the_same_bytes_and_plans_can_be_stored() {
    for isa in ISAS {
        let once = plan(isa, EVERYTHING, &gpu(128 * GIB));
        let stored = serde_json::to_string(&once).unwrap();
        let again = plan(isa, EVERYTHING, &gpu(128 * GIB));
        assert_eq!(stored, serde_json::to_string(&again).unwrap());
        assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), once);
    }
}

/// A slot that is kept for a device that comes later is like any other for the guest.
#[test]
fn a_reserved_function_makes_the_tables_of_any_other() {
    for isa in ISAS {
        let config = asked(EVERYTHING);
        let mut kept = plan(isa, EVERYTHING, &gpu(128 * GIB));
        let of_a_device = kept.clone();
        for segment in &mut kept.pci.as_mut().unwrap().segments {
            for function in &mut segment.functions {
                function.source = FunctionSource::Reserved;
                function.facts.driver = None;
            }
        }
        let stored = serde_json::to_string(&kept).unwrap();
        assert!(stored.contains(r#""source":"Reserved""#), "{stored}");
        assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), kept);

        let Plan {
            cpus,
            memory,
            interrupts,
            devices,
            pci,
            ..
        } = &mut kept;
        let planned = numa::plan(&config.numa, isa, cpus, memory, pci.as_mut());
        let planned = planned.unwrap().unwrap();
        assert_eq!(Some(&planned.plan), of_a_device.numa.as_ref());
        let pci = pci.as_ref().unwrap();
        let tables = firmware::encode(isa, cpus, interrupts, devices, pci, Some(&planned.topology));
        let made = firmware::place(
            isa,
            Some(tables.unwrap()),
            memory,
            devices.sleep,
            &config.platform,
        );
        assert_eq!(made.unwrap(), of_a_device.firmware);
        assert!(table(&of_a_device, "SRAT").is_some());
    }
}
