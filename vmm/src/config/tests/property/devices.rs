//! Devices that have a place on PCI, and PCI segments.

use std::collections::BTreeSet;

use super::*;

/// Any name, often one that devices may have without being given it.
pub fn any_id() -> impl Strategy<Value = Option<String>> {
    let named = [
        "_vfio0",
        "_vfio1",
        "_vfio_user0",
        "_disk0",
        "_net0",
        "_vsock0",
        "__rng",
        "__console",
        "a",
    ]
    .map(|id| Some(id.to_owned()));
    prop_oneof![
        Just(None),
        any::<String>().prop_map(Some),
        prop::sample::select(named.to_vec()),
    ]
}

/// Any name, segment and device number.
pub fn any_place() -> impl Strategy<Value = (Option<String>, u16, Option<u8>)> {
    (any_id(), any::<u16>(), any::<Option<u8>>())
}

/// Any nodes, often few and small enough to be those of `--numa`.
fn any_ids() -> impl Strategy<Value = Option<GuestNumaIds>> {
    let few = prop::collection::vec(0_u32..6, 0..4);
    prop_oneof![
        Just(None),
        prop::collection::vec(any::<u32>(), 0..8).prop_map(|ids| Some(GuestNumaIds::Ids(ids))),
        few.prop_map(|ids| Some(GuestNumaIds::Ids(ids))),
        any::<u32>().prop_map(|count| Some(GuestNumaIds::Auto(count))),
        (1_u32..9).prop_map(|count| Some(GuestNumaIds::Auto(count))),
    ]
}

fn any_initiator() -> impl Strategy<Value = GenericInitiator> {
    use GenericInitiator::{Auto, Off, On, Only};
    prop::sample::select(vec![Auto, On, Off, Only])
}

prop_compose! {
    pub fn any_device()(
        path in any::<String>(),
        id in any_id(),
        (pci_segment, pci_device_id) in any::<(u16, Option<u8>)>(),
        x_exclude_mmap_bars in prop::collection::vec(any::<u8>(), 0..4),
        guest_numa_ids in any_ids(),
        generic_initiator in any_initiator(),
        [iommu, x_allow_noncacheable] in any::<[bool; 2]>(),
    ) -> DeviceConfig {
        DeviceConfig {
            path: path.into(), iommu, id, pci_segment, pci_device_id, x_exclude_mmap_bars,
            guest_numa_ids, generic_initiator, x_allow_noncacheable,
        }
    }
}

prop_compose! {
    pub fn any_user_device()(
        socket in any::<String>(),
        id in any_id(),
        (pci_segment, pci_device_id) in any::<(u16, Option<u8>)>(),
        guest_numa_ids in any_ids(),
        generic_initiator in any_initiator(),
    ) -> UserDeviceConfig {
        UserDeviceConfig {
            socket: socket.into(), id, pci_segment, pci_device_id, guest_numa_ids,
            generic_initiator,
        }
    }
}

prop_compose! {
    pub fn any_rng()(
        src in any::<String>(),
        id in any_id(),
        (pci_segment, pci_device_id) in any::<(u16, Option<u8>)>(),
    ) -> RngConfig {
        RngConfig { src: src.into(), id, pci_segment, pci_device_id }
    }
}

prop_compose! {
    pub fn any_vsock()(
        cid in any::<u32>(),
        socket in any::<String>(),
        id in any_id(),
        (pci_segment, pci_device_id) in any::<(u16, Option<u8>)>(),
    ) -> VsockConfig {
        VsockConfig { cid, socket: socket.into(), id, pci_segment, pci_device_id }
    }
}

prop_compose! {
    pub fn any_segment()(
        pci_segment in any::<u16>(),
        [mmio32_aperture_weight, mmio64_aperture_weight] in any::<[u32; 2]>(),
    ) -> PciSegmentConfig {
        PciSegmentConfig { pci_segment, mmio32_aperture_weight, mmio64_aperture_weight }
    }
}

/// Appends the keys that devices of every kind have.
pub fn push_place(
    text: &mut String,
    id: &Option<String>,
    pci_segment: u16,
    pci_device_id: Option<u8>,
) {
    text.push_str(&format!(",pci_segment={pci_segment}"));
    if let Some(id) = id {
        text.push_str(&format!(",id={}", quoted(id)));
    }
    if let Some(number) = pci_device_id {
        text.push_str(&format!(",pci_device_id={number}"));
    }
}

/// Appends the keys that passed-through devices of every kind have.
fn push_nodes(
    text: &mut String,
    guest_numa_ids: &Option<GuestNumaIds>,
    generic_initiator: GenericInitiator,
) {
    text.push_str(&format!(",generic_initiator={generic_initiator}"));
    if let Some(ids) = guest_numa_ids {
        text.push_str(&format!(",guest_numa_ids={ids}"));
    }
}

/// A device of which only its name and its nodes may be in the way of others.
fn any_sound_device() -> impl Strategy<Value = (Option<String>, Option<GuestNumaIds>)> {
    let names = ["_vfio0", "_vfio2", "_vfio_user1", "a", "b"];
    let range = |(first, count): (u32, u32)| GuestNumaIds::Ids((first..first + count).collect());
    let ids = prop_oneof![
        (1_u32..9).prop_map(GuestNumaIds::Auto),
        (1_u32..5, 1_u32..3).prop_map(range),
    ];
    (
        prop::option::weighted(
            0.3,
            prop::sample::select(names.to_vec()).prop_map(String::from),
        ),
        prop::option::of(ids),
    )
}

fn entropy() -> RngConfig {
    RngConfig {
        src: "/r".into(),
        id: None,
        pci_segment: 0,
        pci_device_id: None,
    }
}

prop_compose! {
    /// A machine of which little but names and nodes of devices can be wrong.
    fn any_sound_devices()(
        names in prop::collection::vec(
            prop::option::weighted(0.2, prop::sample::select(vec!["_vfio0", "_vfio_user0", "a"])),
            6,
        ),
        hosts in prop::collection::vec(any_sound_device(), 0..3),
        others in prop::collection::vec(any_sound_device(), 0..3),
        rng in prop::option::of(prop::option::of(
            prop::sample::select(vec!["__rng", "a"]).prop_map(String::from),
        )),
    ) -> VmConfig {
        let node = |(guest_numa_id, device_id): (u32, Option<&str>)| NumaConfig {
            guest_numa_id,
            cpus: if guest_numa_id == 0 { vec![0] } else { Vec::new() },
            distances: Vec::new(),
            memory_zones: Vec::new(),
            hmat: Vec::new(),
            pci_segments: Vec::new(),
            device_id: device_id.map(str::to_owned),
        };
        let host = |(index, (id, guest_numa_ids))| DeviceConfig {
            path: format!("/d{index}").into(),
            iommu: false,
            id,
            pci_segment: 0,
            pci_device_id: None,
            x_exclude_mmap_bars: Vec::new(),
            guest_numa_ids,
            generic_initiator: GenericInitiator::Auto,
            x_allow_noncacheable: false,
        };
        let other = |(index, (id, guest_numa_ids))| UserDeviceConfig {
            socket: format!("/s{index}").into(),
            id,
            pci_segment: 0,
            pci_device_id: None,
            guest_numa_ids,
            generic_initiator: GenericInitiator::Auto,
        };
        VmConfig {
            numa: (0..).zip([None].into_iter().chain(names)).map(node).collect(),
            devices: (0_u32..).zip(hosts).map(host).collect(),
            user_devices: (0_u32..).zip(others).map(other).collect(),
            rng: rng.map(|id| RngConfig { id, ..entropy() }),
            memory: MemoryConfig { shared: true, ..MemoryConfig::default() },
            payload: PayloadConfig { kernel: Some("/k".into()), ..PayloadConfig::default() },
            ..VmConfig::default()
        }
    }
}

proptest! {
    #[test]
    fn devices_survive_the_command_line(config in any_device()) {
        let DeviceConfig {
            path, iommu, id, pci_segment, pci_device_id, x_exclude_mmap_bars, guest_numa_ids,
            generic_initiator, x_allow_noncacheable,
        } = &config;
        let bars: Vec<String> = x_exclude_mmap_bars.iter().map(ToString::to_string).collect();
        let mut text = format!(
            "path={},iommu={},x_exclude_mmap_bars=[{}],x_allow_noncacheable={}",
            quoted(path.to_str().unwrap()), switch(*iommu), bars.join(","),
            switch(*x_allow_noncacheable),
        );
        push_place(&mut text, id, *pci_segment, *pci_device_id);
        push_nodes(&mut text, guest_numa_ids, *generic_initiator);
        prop_assert_eq!(option("device", &text), Ok(config));
    }

    #[test]
    fn devices_of_processes_survive_the_command_line(config in any_user_device()) {
        let UserDeviceConfig {
            socket, id, pci_segment, pci_device_id, guest_numa_ids, generic_initiator,
        } = &config;
        let mut text = format!("socket={}", quoted(socket.to_str().unwrap()));
        push_place(&mut text, id, *pci_segment, *pci_device_id);
        push_nodes(&mut text, guest_numa_ids, *generic_initiator);
        prop_assert_eq!(option("user-device", &text), Ok(config));
    }

    #[test]
    fn entropy_survives_the_command_line(config in any_rng()) {
        let RngConfig { src, id, pci_segment, pci_device_id } = &config;
        let mut text = format!("src={},iommu=off", quoted(src.to_str().unwrap()));
        push_place(&mut text, id, *pci_segment, *pci_device_id);
        prop_assert_eq!(option("rng", &text), Ok(config));
    }

    #[test]
    fn sockets_survive_the_command_line(config in any_vsock()) {
        let VsockConfig { cid, socket, id, pci_segment, pci_device_id } = &config;
        let mut text = format!("cid={cid},iommu=off,socket={}", quoted(socket.to_str().unwrap()));
        push_place(&mut text, id, *pci_segment, *pci_device_id);
        prop_assert_eq!(option("vsock", &text), Ok(config));
    }

    #[test]
    fn segments_survive_the_command_line(config in any_segment()) {
        let PciSegmentConfig { pci_segment, mmio32_aperture_weight, mmio64_aperture_weight } =
            config;
        let text = format!(
            "pci_segment={pci_segment},mmio32_aperture_weight={mmio32_aperture_weight},\
             mmio64_aperture_weight={mmio64_aperture_weight}",
        );
        prop_assert_eq!(option("pci-segment", &text), Ok(config));
    }

    #[test]
    fn devices_have_names_of_their_own_and_disjoint_nodes(config in any_sound_devices()) {
        let names = config.device_ids();
        let passed_through = config.devices.len() + config.user_devices.len();
        prop_assert_eq!(names.len(), passed_through + config.rng.iter().count());
        let nodes = config.device_nodes();
        prop_assert!(names[..passed_through].iter().eq(nodes.iter().map(|(name, _)| name)));
        prop_assert_eq!(&config.device_nodes(), &nodes);
        let Ok(()) = config.validate(Isa::X86_64) else {
            return Ok(());
        };
        let distinct: BTreeSet<&String> = names.iter().collect();
        prop_assert_eq!(distinct.len(), names.len());
        let mut taken = BTreeSet::new();
        for (_, nodes) in nodes {
            let nodes = nodes.unwrap_or_default();
            prop_assert!(nodes.is_sorted());
            prop_assert!(nodes.iter().all(|node| *node <= MAX_NODE_ID && taken.insert(*node)));
        }
        for node in &config.numa {
            prop_assert!(node.is_bare() || !taken.contains(&node.guest_numa_id));
        }
        // What was generated may be written down.
        let mut named = config.clone();
        named.name_devices();
        prop_assert_eq!(named.device_ids(), names);
        prop_assert_eq!(named.validate(Isa::X86_64), Ok(()));
    }
}
