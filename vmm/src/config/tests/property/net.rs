//! Network interfaces.

use super::*;

prop_compose! {
    pub fn any_net()(
        [tap, ip, mask] in any::<[Option<String>; 3]>(),
        [mac, host_mac] in any::<[Option<String>; 2]>(),
        mtu in any::<Option<u16>>(),
        fds in prop::collection::vec(any::<u32>(), 0..3),
        (num_queues, queue_size) in any::<(u16, u16)>(),
        [offload_csum, offload_tso, offload_ufo] in any::<[bool; 3]>(),
        rate_limiter_config in prop::option::of(any_limits()),
        id in any_id(),
        (pci_segment, pci_device_id) in any::<(u16, Option<u8>)>(),
    ) -> NetConfig {
        // An empty text is none.
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let [tap, ip, mask] = [tap, ip, mask].map(some);
        let [mac, host_mac] = [mac, host_mac].map(some);
        NetConfig {
            tap, ip, mask, mac, host_mac, mtu, fds, num_queues, queue_size, offload_csum, offload_tso,
            offload_ufo, rate_limiter_config, id, pci_segment, pci_device_id,
        }
    }
}

proptest! {
    #[test]
    fn interfaces_survive_the_command_line(mut config in any_net()) {
        // Limits without a bucket, which no key makes.
        config.rate_limiter_config = config
            .rate_limiter_config
            .filter(|limits| *limits != RateLimiterConfig::default());
        let NetConfig {
            tap, ip, mask, mac, host_mac, mtu, fds, num_queues, queue_size, offload_csum, offload_tso,
            offload_ufo, rate_limiter_config, id, pci_segment, pci_device_id,
        } = &config;
        let mut text = format!(
            "num_queues={num_queues},queue_size={queue_size},offload_csum={},offload_tso={},\
             offload_ufo={},iommu=off,vhost_user=off,vhost_mode=client",
            switch(*offload_csum), switch(*offload_tso), switch(*offload_ufo),
        );
        if !fds.is_empty() {
            text.push_str(&format!(",fd={fds:?}").replace(' ', ""));
        }
        if let Some(mtu) = mtu {
            text.push_str(&format!(",mtu={mtu}"));
        }
        push_place(&mut text, id, *pci_segment, *pci_device_id);
        push_limits(&mut text, rate_limiter_config.unwrap_or_default());
        for (key, value) in [
            ("tap", tap), ("ip", ip), ("mask", mask), ("mac", mac), ("host_mac", host_mac),
        ] {
            if let Some(value) = value {
                text.push_str(&format!(",{key}={}", quoted(value)));
            }
        }
        prop_assert_eq!(option("net", &text), Ok(config));
    }
}
