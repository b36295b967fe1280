//! Virtio devices.

use super::*;

/// Whatever is known of the host's devices, nothing needs to be known of these.
#[test]
fn a_virtio_device_is_what_its_specification_says() {
    for isa in ISAS {
        let config = asked("--rng src=/r");
        config.validate(isa).unwrap();
        let host = HostFacts::assumed(isa, HostMemory::default());
        let plan = Plan::new(&config, &host).unwrap();
        let rng = function(&plan, "__rng");
        let source = FunctionSource::Virtio {
            kind: VirtioKind::Rng,
        };
        assert_eq!(rng.source, source);
        assert_eq!(rng.bdf.to_string(), "0000:00:01.0");
        assert_eq!(rng.nodes, None);
        let DeviceFacts {
            identity,
            bars,
            intx,
            driver,
            coherent,
        } = &rng.facts;
        // Linux's virtio_pci takes 1af4:1040 and what follows, with 0x1040 less for the type.
        let Identity {
            vendor,
            device,
            revision,
            class,
            subsystem_vendor,
            subsystem,
        } = *identity;
        assert_eq!((vendor, device, revision), (0x1af4, 0x1044, 1));
        assert_eq!((class, subsystem_vendor), (0xff_00_00, 0x1af4));
        assert!(subsystem >= 0x40);
        assert!(!intx && driver.is_none() && coherent.is_none());
        let kind = BarKind::Memory64 {
            prefetchable: false,
        };
        let registers = BarFacts {
            index: 0,
            kind,
            size: 64 * KIB,
            mappable: 0,
        };
        assert_eq!(bars[..], [registers]);
        let window = segments(&plan)[0].mmio64;
        let address = rng.bars[0].unwrap();
        assert!(window.start <= address && address + 64 * KIB <= window.end());
    }
}

#[test]
fn disks_and_networks_come_before_what_there_is_one_of() {
    let line = "--vsock cid=3,socket=/s --rng src=/r --net tap=t --disk path=/i path=/j,id=j,pci_segment=1 path=/k \
                --platform num_pci_segments=2 --device path=/a";
    for isa in ISAS {
        let plan = plan(isa, line, &device(&[]));
        let expected = [
            ("_vfio0", "0000:00:01.0"),
            ("_disk0", "0000:00:02.0"),
            ("_disk2", "0000:00:03.0"),
            ("_net0", "0000:00:04.0"),
            ("__rng", "0000:00:05.0"),
            ("_vsock0", "0000:00:06.0"),
            ("j", "0001:00:01.0"),
        ];
        assert_eq!(slots(&plan), expected.map(|(id, bdf)| (id, bdf.to_owned())));
        let disk = function(&plan, "j");
        let kind = VirtioKind::Block;
        assert_eq!(disk.source, FunctionSource::Virtio { kind });
        assert_eq!(disk.facts, kind.facts());
        let identity = disk.facts.identity;
        assert_eq!((identity.device, identity.class), (0x1042, 0x01_00_00));
        let sockets = function(&plan, "_vsock0");
        let kind = VirtioKind::Vsock;
        assert_eq!(sockets.source, FunctionSource::Virtio { kind });
        let identity = sockets.facts.identity;
        assert_eq!((identity.device, identity.class), (0x1053, 0x07_80_00));
        let net = function(&plan, "_net0");
        let kind = VirtioKind::Net;
        assert_eq!(net.source, FunctionSource::Virtio { kind });
        let identity = net.facts.identity;
        assert_eq!((identity.device, identity.class), (0x1041, 0x02_00_00));
    }
}

#[test]
fn passed_through_devices_have_their_slots_first() {
    let devices = "--platform num_pci_segments=2 --memory shared=on --device path=/a,id=a path=/b,id=b \
                   --user-device socket=/c,id=c";
    for isa in ISAS {
        let without = plan(isa, devices, &device(&[]));
        let with = |rng: &str| plan(isa, &format!("--rng {rng} {devices}"), &device(&[]));
        let mut expected = slots(&without);
        expected.push(("__rng", "0000:00:04.0".to_owned()));
        assert_eq!(slots(&with("src=/r")), expected);
        expected.last_mut().unwrap().1 = "0001:00:00.0".to_owned();
        assert_eq!(slots(&with("pci_segment=1,pci_device_id=0")), expected);
        // A slot that is asked for is nobody else's, as ever.
        let asked = with("pci_device_id=2,id=r");
        let expected = [("a", 1), ("r", 2), ("b", 3), ("c", 4)];
        let expected = expected.map(|(id, device)| (id, format!("0000:00:{device:02x}.0")));
        assert_eq!(slots(&asked), expected);
    }
}

/// It is a slot like any other to ACPI, so the tables of a machine are the same with it.
#[test]
fn tables_say_nothing_of_virtio_devices() {
    let line = "--cpus boot=2 --numa guest_numa_id=0,cpus=[0-1],memory_zones=[mem0] \
                --platform num_pci_segments=2 --device path=/a,guest_numa_ids=auto";
    for isa in ISAS {
        let without = plan(isa, line, &gpu(128 * GIB));
        let with = plan(isa, &format!("{line} --rng pci_segment=1"), &gpu(128 * GIB));
        for name in ["SRAT", "SLIT", "MCFG"] {
            assert!(table(&without, name).is_some(), "{name}");
            assert_eq!(table(&with, name), table(&without, name), "{name}");
        }
        assert_eq!(with.numa, without.numa);
        assert_eq!(with.warnings(), without.warnings());
    }
}

#[test]
fn a_full_segment_names_the_device_without_a_slot() {
    let line = format!("--rng src=/r {}", many(31, ""));
    let refused = refusal(Isa::X86_64, &line, &device(&[])).to_string();
    assert_eq!(
        refused,
        "--rng src=/r: PCI segment 0 is full; use another (--platform num_pci_segments)"
    );
}

#[test]
fn virtio_devices_are_stored_by_what_they_do() {
    let plan = plan(Isa::Aarch64, "--rng src=/r", &device(&[]));
    let stored = serde_json::to_string(&plan).unwrap();
    assert!(
        stored.contains(r#""source":{"Virtio":{"kind":"Rng"}}"#),
        "{stored}"
    );
    assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), plan);
}
