//! Network interfaces: their taps.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use devices::virtio::net::{
    HardwareAddress, Net, NetBackend, NetParts, OffloadChoice, Tap, TapError, TapOptions,
};
use devices::virtio::rate_limiter::{Bucket, Limits};
use thiserror::Error;

use super::BackendError;
use crate::config::{NetConfig, RateLimiterConfig, TokenBucket, VmConfig};
use crate::inherited::{self, InheritedError};

/// Why a network interface has no host's end.
#[derive(Debug, Error)]
pub enum NetError {
    /// The tap cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A descriptor was not inherited.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// A descriptor cannot be kept for the next boot.
    #[error("cannot duplicate a descriptor of its tap")]
    Duplicate(#[source] io::Error),
    /// The host has no randomness.
    #[error("cannot choose a MAC address")]
    Mac(#[source] io::Error),
    /// Validation would have found it.
    #[error("{key} {reason}")]
    Value {
        /// The key at fault.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Descriptors of one tap that somebody else has opened, as the process has them.
#[derive(Clone, Debug)]
pub struct GivenTap(Arc<Vec<OwnedFd>>);

impl GivenTap {
    /// Descriptors that came with a request.
    pub fn new(files: Vec<OwnedFd>) -> Self {
        Self(Arc::new(files))
    }

    /// Takes over descriptors that this process has inherited.
    ///
    /// # Errors
    /// One of them was not.
    fn claim(fds: &[u32]) -> Result<Self, InheritedError> {
        let files = fds.iter().map(|fd| inherited::claim(number_of(*fd)));
        Ok(Self::new(files.collect::<Result<_, _>>()?))
    }

    /// Their numbers.
    pub fn numbers(&self) -> Vec<u32> {
        // No descriptor that is open is negative.
        let numbers = self.0.iter().map(|file| file.as_raw_fd() as u32);
        numbers.collect()
    }
}

/// A number that no descriptor can have stays one that none has.
fn number_of(fd: u32) -> RawFd {
    RawFd::try_from(fd).unwrap_or(RawFd::MAX)
}

impl PartialEq for GivenTap {
    fn eq(&self, other: &Self) -> bool {
        self.numbers() == other.numbers()
    }
}

impl Eq for GivenTap {}

/// Taps that somebody else has opened: they stay open for as long as the virtual machine has their
/// interfaces, so that it can be booted again.
#[derive(Debug, Default)]
pub struct GivenTaps(Vec<GivenTap>);

impl GivenTaps {
    /// Keeps one more.
    pub fn add(&mut self, tap: GivenTap) {
        self.0.push(tap);
    }

    /// Closes those that no interface of a configuration has any more.
    pub fn retain(&mut self, config: &VmConfig) {
        self.0.retain(|tap| {
            let numbers = tap.numbers();
            config.net.iter().any(|net| net.fds == numbers)
        });
    }

    /// Takes over what was inherited and is not here yet.
    ///
    /// # Errors
    /// A descriptor was not inherited.
    pub fn claim(&mut self, config: &VmConfig) -> Result<(), BackendError> {
        for net in &config.net {
            if net.fds.is_empty() || self.find(net).is_some() {
                continue;
            }
            let claimed = GivenTap::claim(&net.fds).map_err(|source| BackendError::Net {
                option: net.option(),
                source: source.into(),
            })?;
            self.add(claimed);
        }
        Ok(())
    }

    fn find(&self, config: &NetConfig) -> Option<&GivenTap> {
        self.0.iter().find(|tap| tap.numbers() == config.fds)
    }
}

/// A network interface, for all boots.
pub struct NetInterface {
    backend: Arc<NetBackend>,
    mac: HardwareAddress,
    mtu: Option<u16>,
    pairs: u16,
    queue_size: u16,
    offloads: OffloadChoice,
}

impl NetInterface {
    /// Opens its tap.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open(config: &NetConfig, given: &GivenTaps) -> Result<Self, BackendError> {
        Self::try_open(config, given).map_err(|source| BackendError::Net {
            option: config.option(),
            source,
        })
    }

    fn try_open(config: &NetConfig, given: &GivenTaps) -> Result<Self, NetError> {
        let NetConfig {
            tap,
            ip: _,
            mask: _,
            mac,
            host_mac,
            mtu,
            fds: _,
            num_queues: _,
            queue_size,
            offload_csum,
            offload_tso,
            offload_ufo,
            rate_limiter_config,
            id: _,
            pci_segment: _,
            pci_device_id: _,
        } = config;
        let read = |key: &'static str, text: &Option<String>| {
            let parsed = text.as_deref().map(str::parse::<HardwareAddress>);
            parsed.transpose().map_err(|error| NetError::Value {
                key: key.to_owned(),
                reason: error.to_string(),
            })
        };
        let mac = match read("mac", mac)? {
            Some(mac) => mac,
            None => HardwareAddress::random().map_err(NetError::Mac)?,
        };
        let opened = match given.find(config) {
            Some(GivenTap(files)) => {
                let copies = files.iter().map(OwnedFd::try_clone);
                let copies: io::Result<_> = copies.collect();
                let copies = copies.map_err(NetError::Duplicate)?;
                Tap::from_descriptors(copies, *mtu)?
            }
            None => {
                let address = config.address();
                let (address, was_asked_for) =
                    address.map_err(|(key, reason)| NetError::Value { key, reason })?;
                Tap::open(&TapOptions {
                    name: tap.as_deref(),
                    pairs: config.pairs(),
                    address: was_asked_for.then_some(address),
                    address_if_new: address,
                    hardware_address: read("host_mac", host_mac)?,
                    mtu: *mtu,
                })?
            }
        };
        let limits = || limits(*rate_limiter_config);
        Ok(Self {
            backend: Arc::new(NetBackend::new(Box::new(opened), limits(), limits())),
            mac,
            mtu: *mtu,
            pairs: config.pairs(),
            queue_size: *queue_size,
            offloads: OffloadChoice {
                checksums: *offload_csum,
                tso: *offload_tso,
                ufo: *offload_ufo,
            },
        })
    }

    /// A device for one boot.
    pub fn device(&self) -> Net {
        let Self {
            backend,
            mac,
            mtu,
            pairs,
            queue_size,
            offloads,
        } = self;
        Net::new(NetParts {
            backend: Arc::clone(backend),
            mac: *mac,
            mtu: *mtu,
            pairs: *pairs,
            queue_size: *queue_size,
            offloads: *offloads,
        })
    }

    /// What it has counted since it was opened.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.backend.counters()
    }
}

fn limits(config: Option<RateLimiterConfig>) -> Limits {
    let RateLimiterConfig { bandwidth, ops } = config.unwrap_or_default();
    Limits::new(bandwidth.map(bucket), ops.map(bucket))
}

fn bucket(config: TokenBucket) -> Bucket {
    let TokenBucket {
        size,
        one_time_burst,
        refill_time,
    } = config;
    Bucket {
        size,
        one_time_burst: one_time_burst.unwrap_or(0),
        refill: Duration::from_millis(refill_time),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io::pipe;

    use super::*;
    use crate::config::from_json;
    use crate::inherited::as_inherited;

    fn config(fds: &[u32]) -> VmConfig {
        let net: NetConfig = from_json(format!(r#"{{"fds": {fds:?}}}"#).as_bytes()).unwrap();
        VmConfig {
            net: vec![net],
            ..VmConfig::default()
        }
    }

    /// Taken over once, kept over boots, closed when no interface has them.
    #[test]
    fn inherited_taps_are_kept_for_as_long_as_they_are_needed() {
        let (mut reader, writer) = pipe().unwrap();
        let fd = as_inherited(&writer);
        drop(writer);
        let config = config(&[fd as u32]);
        let mut taps = GivenTaps::default();
        taps.claim(&config).unwrap();
        taps.claim(&config).unwrap();
        taps.retain(&config);
        assert_eq!(taps.0.len(), 1);
        // It is no tap, which is found out at each boot.
        for _ in 0..2 {
            let error = NetInterface::open(&config.net[0], &taps).err().unwrap();
            assert_eq!(error.to_string(), "--net");
            let source = error.source().unwrap().to_string();
            assert_eq!(source, "descriptor 1 of 1 is no tap");
        }
        taps.retain(&VmConfig::default());
        assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
        // It is gone.
        let error = taps.claim(&config).unwrap_err();
        let source = error.source().unwrap().to_string();
        assert!(source.contains("is not open"), "{source}");
    }

    #[test]
    fn taps_that_came_with_a_request_are_not_looked_for_elsewhere() {
        let (_reader, writer) = pipe().unwrap();
        let tap = GivenTap::new(vec![writer.into()]);
        let config = config(&tap.numbers());
        let mut taps = GivenTaps::default();
        taps.add(tap);
        taps.claim(&config).unwrap();
        assert!(taps.find(&config.net[0]).is_some());
    }
}
