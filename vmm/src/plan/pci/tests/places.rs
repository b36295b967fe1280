//! Slots, windows and addresses.

use arch::{aarch64, x86_64};

use super::*;

#[test]
fn slots_are_those_asked_for_and_then_the_lowest() {
    let line = "--platform num_pci_segments=2 --device path=/a,id=a path=/b,id=b,pci_device_id=1 \
                path=/c,id=c path=/d,id=d,pci_device_id=4 path=/e,id=e \
                path=/f,id=f,pci_segment=1 path=/g,id=g,pci_segment=1,pci_device_id=0 \
                --memory shared=on --user-device socket=/h,id=h socket=/i,id=i,pci_device_id=31";
    for isa in ISAS {
        let plan = plan(isa, line, &device(&[]));
        let expected = [
            ("b", "0000:00:01.0"),
            ("a", "0000:00:02.0"),
            ("c", "0000:00:03.0"),
            ("d", "0000:00:04.0"),
            ("e", "0000:00:05.0"),
            ("h", "0000:00:06.0"),
            ("i", "0000:00:1f.0"),
            ("g", "0001:00:00.0"),
            ("f", "0001:00:01.0"),
        ];
        assert_eq!(slots(&plan), expected.map(|(id, bdf)| (id, bdf.to_owned())));
        let sources = ["g", "h"].map(|id| &function(&plan, id).source);
        let [path, socket] = ["/g".to_owned(), "/h".to_owned()];
        assert_eq!(*sources[0], FunctionSource::Vfio { path });
        assert_eq!(*sources[1], FunctionSource::VfioUser { socket });
    }
}

#[test]
fn a_segment_has_31_slots_and_device_0_if_it_is_asked_for() {
    let full = plan(Isa::Aarch64, &many(31, ""), &device(&[]));
    assert_eq!(functions(&full).count(), 31);
    let refused = refusal(Isa::Aarch64, &many(32, ""), &device(&[]));
    assert_eq!(
        refused.to_string(),
        "--device path=/many31: PCI segment 0 is full; use another (--platform num_pci_segments)"
    );
    let line = format!(
        "{} path=/z,pci_segment=1,pci_device_id=0 --platform num_pci_segments=2",
        many(31, ",pci_segment=1")
    );
    let full = plan(Isa::Aarch64, &line, &device(&[]));
    let devices = functions(&full).map(|function| function.bdf.device);
    assert_eq!(devices.collect::<Vec<_>>(), (0..32).collect::<Vec<_>>());
}

#[test]
fn a_segment_that_is_not_there_is_refused() {
    let refused = refusal(Isa::X86_64, "--device path=/a,pci_segment=1", &device(&[]));
    assert_eq!(
        refused.to_string(),
        "--device path=/a,pci_segment=1: there is no such segment"
    );
}

#[test]
fn windows_are_shared_out_by_weight() {
    let line = "--platform num_pci_segments=3 \
                --pci-segment pci_segment=1,mmio64_aperture_weight=3 \
                pci_segment=2,mmio32_aperture_weight=2";
    for (isa, window32) in [(Isa::X86_64, 640 * MIB), (Isa::Aarch64, 512 * MIB)] {
        let plan = plan(isa, line, &device(&[]));
        assert_eq!(plan.memory.mmio32.size, window32);
        let sizes32: Vec<u64> = segments(&plan).iter().map(|s| s.mmio32.size).collect();
        assert_eq!(sizes32, [window32 / 4, window32 / 4, window32 / 2]);
        let sizes64: Vec<u64> = segments(&plan).iter().map(|s| s.mmio64.size).collect();
        // 8 TiB, in multiples of 1 GiB.
        assert_eq!(sizes64, [1638, 4915, 1638].map(|gib| gib * GIB));
    }
}

/// What is mapped behind a page must be of one BAR alone; guests on aarch64 may have pages of 64 KiB.
#[test]
fn bars_below_a_page_have_one_to_themselves() {
    let small = device(&[(0, MEM32, 16), (1, MEM32, 256), (2, MEM32, 4 * KIB)]);
    for (isa, page) in [(Isa::X86_64, 4 * KIB), (Isa::Aarch64, 64 * KIB)] {
        let plan = plan(isa, "--device path=/a path=/b", &small);
        let start = segments(&plan)[0].mmio32.start;
        let bars: Vec<Option<u64>> = functions(&plan).flat_map(|f| f.bars.clone()).collect();
        let expected: Vec<_> = (0..6).map(|number| Some(start + number * page)).collect();
        assert_eq!(bars, expected);
    }
}

#[test]
fn bars_are_aligned_to_their_size_and_the_largest_come_first() {
    let facts = device(&[(0, MEM32, MIB), (1, MEM32, 64 * MIB), (2, MEM64, 8 * GIB)]);
    for isa in ISAS {
        let plan = plan(isa, "--device path=/a path=/b", &facts);
        let SegmentPlan { mmio32, mmio64, .. } = &segments(&plan)[0];
        let bars: Vec<_> = functions(&plan).map(|f| f.bars.clone()).collect();
        let at32 = |offset| Some(mmio32.start + offset);
        let at64 = |offset| Some(mmio64.start + offset);
        assert!(mmio64.start.is_multiple_of(8 * GIB));
        assert_eq!(bars[0], [at32(128 * MIB), at32(0), at64(0)]);
        assert_eq!(bars[1], [at32(129 * MIB), at32(64 * MIB), at64(8 * GIB)]);
    }
}

#[test]
fn large_bars_stay_low_unless_they_cannot() {
    for isa in ISAS {
        let few = plan(isa, &many(16, ""), &gpu(256 * GIB));
        let window = segments(&few)[0].mmio64;
        assert!(window.end() <= few.memory.mmio64.start + 8 * TIB);
        for function in functions(&few) {
            let address = function.bars[2].unwrap();
            assert!(address.is_multiple_of(256 * GIB) && address + 256 * GIB <= window.end());
        }
    }
    // 10 TiB in two segments: they take that, and no more of the 64 TiB that there are.
    let line = format!(
        "{} --platform num_pci_segments=2",
        many(20, ",pci_segment=1")
    );
    let line = line.replace(",pci_segment=1 path=/many1", " path=/many1");
    let many = plan(Isa::X86_64, &line, &gpu(512 * GIB));
    let highest = functions(&many)
        .filter_map(|function| function.bars[2])
        .max();
    assert_eq!(many.memory.mmio64.end(), 64 * TIB);
    assert!(
        (9 * TIB..11 * TIB).contains(&highest.unwrap()),
        "{highest:x?}"
    );
}

#[test]
fn bars_that_do_not_fit_say_how_many_bytes_there_are() {
    let config = asked("--cpus boot=1,max_phys_bits=42 --device path=/a path=/b");
    let host = host(Isa::X86_64, &config, &gpu(2 * TIB));
    let refused = Plan::new(&config, &host).unwrap_err();
    // From 4 GiB up to the first multiple of 2 TiB, then both BARs with 3 GiB of small ones.
    let needed = 2 * TIB - 4 * GIB + 4 * TIB + 3 * GIB;
    let available = 4 * TIB - 4 * GIB;
    assert_eq!(
        refused.to_string(),
        format!(
            "--device, --user-device: 64-bit BARs need {needed:#x} bytes, gaps for alignment \
             included, and with 42-bit addresses there are {available:#x} behind RAM; give fewer \
             devices or less RAM or, where the host has more bits, a larger --cpus max_phys_bits"
        )
    );
    let facts = device(&[(0, MEM32, 256 * MIB)]);
    let refused = refusal(Isa::Aarch64, &many(3, ""), &facts).to_string();
    assert!(
        refused.contains("32-bit BARs need 0x30000000 bytes")
            && refused.contains("below 4 GiB there are 0x20000000;"),
        "{refused}"
    );
    assert!(!refused.contains("max_phys_bits"), "{refused}");
}

#[test]
fn io_bars_are_on_segment_0_of_x86_64_alone() {
    let facts = device(&[(0, IO, 32), (1, IO, 256), (2, MEM32, MIB)]);
    let line = "--platform num_pci_segments=2 --device path=/a,id=a path=/b,id=b,pci_segment=1";
    for isa in ISAS {
        let plan = plan(isa, line, &facts);
        let ports = |id| function(&plan, id).bars[..2].to_vec();
        let on_segment_0 = match isa {
            Isa::X86_64 => [Some(0xc100), Some(0xc000)],
            Isa::Aarch64 => [None, None],
        };
        assert_eq!(ports("a"), on_segment_0);
        assert_eq!(ports("b"), [None, None]);
        assert!(function(&plan, "b").bars[2].is_some());
        let windows: Vec<bool> = segments(&plan).iter().map(|s| s.io.is_some()).collect();
        assert_eq!(windows, [isa == Isa::X86_64, false]);
    }
    let bars: Vec<_> = (0..6).map(|index| (index, IO, 256)).collect();
    assert!(
        Plan::new(
            &asked(&many(10, "")),
            &host(Isa::X86_64, &asked(&many(10, "")), &device(&bars))
        )
        .is_ok()
    );
    let refused = refusal(Isa::X86_64, &many(11, ""), &device(&bars)).to_string();
    assert!(
        refused.contains("need 0x4200 ports, and there are 0x4000;"),
        "{refused}"
    );
    plan(Isa::Aarch64, &many(11, ""), &device(&bars));
}

#[test]
fn ninety_six_segments_have_room() {
    let facts = device(&[(0, MEM32, 4 * MIB), (2, MEM64, 16 * GIB)]);
    let devices = (0..96).map(|number| format!(" path=/d{number},pci_segment={number}"));
    let line = format!(
        "--platform num_pci_segments=96 --device{}",
        devices.collect::<String>()
    );
    for isa in ISAS {
        let plan = plan(isa, &line, &facts);
        let segments = segments(&plan);
        assert_eq!(segments.len(), 96);
        let ecam = match isa {
            Isa::X86_64 => (x86_64::layout::ECAM_START, x86_64::layout::ECAM_END),
            Isa::Aarch64 => (
                aarch64::layout::PCI_ECAM.start,
                aarch64::layout::PCI_ECAM.end(),
            ),
        };
        assert_eq!(segments[0].ecam.start, ecam.0);
        assert_eq!(segments[95].ecam.end(), ecam.1);
        assert!(functions(&plan).all(|function| function.bars.iter().all(Option::is_some)));
    }
}

#[test]
fn memory_that_would_not_be_cached_is_refused_unless_that_is_allowed() {
    let refused = |line: &str, facts: &DeviceFacts, cacheable| {
        let config = asked(line);
        let host = HostFacts {
            cacheable_device_memory: cacheable,
            ..host(Isa::Aarch64, &config, facts)
        };
        let error = Plan::new(&config, &host).err();
        error.map(|error| match error {
            PlanError::NotCacheable { option } => option,
            other => panic!("{other}"),
        })
    };
    let gpu = gpu(128 * GIB);
    assert_eq!(
        refused("--device path=/a,id=x", &gpu, false).as_deref(),
        Some("--device path=/a")
    );
    assert_eq!(refused("--device path=/a", &gpu, true), None);
    let allowed = "--device path=/a,x_allow_noncacheable=on";
    assert_eq!(refused(allowed, &gpu, false), None);
    let served = "--memory shared=on --user-device socket=/a";
    assert_eq!(refused(served, &gpu, false), None);
    assert_eq!(refused("--device path=/a", &device(&[]), false), None);
}

#[test]
fn a_device_is_known_by_what_is_written() {
    for (line, option) in [
        ("--device path=/a", "--device path=/a"),
        (
            "--memory shared=on --user-device socket=/s",
            "--user-device socket=/s",
        ),
    ] {
        let config = asked(line);
        let mut host = host(Isa::X86_64, &config, &device(&[]));
        assert!(Plan::new(&config, &host).is_ok());
        let facts = host.devices.pop_first().unwrap().1;
        host.devices.insert("/a/".to_owned(), facts);
        let refused = Plan::new(&config, &host).unwrap_err().to_string();
        let text = format!("{option}: nothing is known of this device;");
        assert!(refused.starts_with(&text), "{refused}");
    }
}

#[test]
fn facts_that_cannot_be_are_refused() {
    let refused = |facts: &DeviceFacts| {
        let error = refusal(Isa::X86_64, "--device path=/a", facts).to_string();
        let rest = error.strip_prefix("--device path=/a: ").map(str::to_owned);
        rest.unwrap_or(error)
    };
    for (bars, fault) in [
        (
            vec![(0, MEM32, 0)],
            "BAR 0 has 0x0 bytes, which is no power of two",
        ),
        (vec![(0, MEM32, 3 * MIB)], "BAR 0 has 0x300000 bytes, which"),
        (
            vec![(1, MEM32, 4 * GIB)],
            "BAR 1 has 0x100000000 bytes, which",
        ),
        (vec![(2, IO, 512)], "BAR 2 has 0x200 bytes, which"),
        (vec![(0, IO, 2)], "BAR 0 has 0x2 bytes, which"),
        (
            vec![(0, MEM64, GIB), (1, MEM32, MIB)],
            "BAR 1 is where another is",
        ),
        (
            vec![(1, MEM32, MIB), (0, MEM32, MIB)],
            "BAR 0 is where another is",
        ),
        (
            vec![(5, MEM64, GIB)],
            "BAR 5 is where another is, or behind",
        ),
        (
            vec![(6, MEM32, MIB)],
            "BAR 6 is where another is, or behind",
        ),
        (
            vec![(255, MEM32, MIB)],
            "BAR 255 is where another is, or behind",
        ),
    ] {
        let error = refused(&device(&bars));
        assert!(error.starts_with(fault), "{bars:?}: {error}");
    }
    let mut facts = gpu(GIB);
    facts.bars[2].mappable = GIB + 1;
    assert!(refused(&facts).starts_with("BAR 4 has 0x40000000 bytes, and 0x40000001 that"));
    let mut facts = gpu(GIB);
    facts.coherent = Some(CoherentMemory {
        bar: 4,
        usable: 2 * GIB,
    });
    assert!(refused(&facts).starts_with("BAR 4 has 0x40000000 bytes, and 0x80000000 of memory"));
    facts.coherent = Some(CoherentMemory {
        bar: 3,
        usable: MIB,
    });
    assert!(refused(&facts).starts_with("it has memory in BAR 3, which it has not"));
    // The largest that can be said are no trouble either.
    let facts = device(&[
        (0, MEM64, 1 << 63),
        (2, MEM64, 1 << 63),
        (4, MEM64, 1 << 63),
    ]);
    let refused = refusal(Isa::X86_64, &many(31, ""), &facts);
    assert!(
        matches!(refused, PlanError::PciWindow64 { .. }),
        "{refused}"
    );
}
