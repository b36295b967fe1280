//! The common configuration (section 4.1.4.3): negotiation, and the setting up of queues.

use virtio_queue::{Queue, QueueT};

use crate::virtio::features;

/// Bytes of it.
pub(super) const SIZE: usize = 0x38;

/// Offsets of the registers.
mod offset {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// What a write means to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The status is to be this.
    Status(u8),
    /// Changes of registers have this vector.
    ConfigVector(u16),
    /// A queue has this vector.
    QueueVector(usize, u16),
}

/// The registers.
pub(super) struct Common {
    offered: u64,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    queues: Vec<Queue>,
}

impl Common {
    pub fn new(offered: u64, queues: Vec<Queue>) -> Self {
        Self {
            offered,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            queues,
        }
    }

    /// As at the start.
    pub fn reset(&mut self) {
        self.accepted = 0;
        self.device_select = 0;
        self.driver_select = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(Queue::reset);
    }

    /// The number of the queue that registers are about.
    pub fn selected_queue(&self) -> usize {
        self.queue_select.into()
    }

    /// Features that both sides know.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// Whether the driver has chosen among what is offered, with what no driver can do without.
    pub fn are_offered(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & features::VERSION_1 != 0
    }

    /// The queues as they are to be used.
    pub fn queues(&self) -> impl Iterator<Item = Queue> {
        let event_idx = self.accepted & features::EVENT_IDX != 0;
        self.queues.iter().filter_map(move |queue| {
            let mut queue = Queue::try_from(queue.state()).ok()?;
            queue.set_event_idx(event_idx);
            Some(queue)
        })
    }

    /// All registers, as they are read.
    pub fn bytes(
        &self,
        status: u8,
        generation: u8,
        config_vector: u16,
        queue_vector: u16,
    ) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        put(
            offset::DEVICE_FEATURE_SELECT as usize,
            &self.device_select.to_le_bytes(),
        );
        let features = half(self.offered, self.device_select);
        put(offset::DEVICE_FEATURE, &features.to_le_bytes());
        put(
            offset::DRIVER_FEATURE_SELECT as usize,
            &self.driver_select.to_le_bytes(),
        );
        let features = half(self.accepted, self.driver_select);
        put(offset::DRIVER_FEATURE as usize, &features.to_le_bytes());
        put(offset::CONFIG_VECTOR as usize, &config_vector.to_le_bytes());
        // At most 1000.
        put(
            offset::NUM_QUEUES,
            &(self.queues.len() as u16).to_le_bytes(),
        );
        put(offset::STATUS as usize, &[status]);
        put(offset::CONFIG_GENERATION, &[generation]);
        put(
            offset::QUEUE_SELECT as usize,
            &self.queue_select.to_le_bytes(),
        );
        // A queue that is not there has a size of 0.
        if let Some(queue) = self.queues.get(self.selected_queue()) {
            put(offset::QUEUE_SIZE as usize, &queue.size().to_le_bytes());
            put(offset::QUEUE_VECTOR as usize, &queue_vector.to_le_bytes());
            put(
                offset::QUEUE_ENABLE as usize,
                &u16::from(queue.ready()).to_le_bytes(),
            );
            put(offset::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(
                offset::QUEUE_DESC as usize,
                &queue.desc_table().to_le_bytes(),
            );
            put(
                offset::QUEUE_DRIVER as usize,
                &queue.avail_ring().to_le_bytes(),
            );
            put(
                offset::QUEUE_DEVICE as usize,
                &queue.used_ring().to_le_bytes(),
            );
        }
        bytes
    }

    /// A guest's write: a register of its own width, or a half of one of 64 bits. Others mean nothing.
    /// While the device is `running`, queues and features are as they are.
    pub fn write(&mut self, at: u64, data: &[u8], running: bool) -> Effect {
        match (at, data) {
            (offset::STATUS, [status]) => return Effect::Status(*status),
            (_, &[a, b]) => return self.write_16(at, u16::from_le_bytes([a, b]), running),
            (_, &[a, b, c, d]) => self.write_32(at, u32::from_le_bytes([a, b, c, d]), running),
            (_, &[a, b, c, d, e, f, g, h]) => {
                self.write_32(at, u32::from_le_bytes([a, b, c, d]), running);
                self.write_32(at + 4, u32::from_le_bytes([e, f, g, h]), running);
            }
            _ => {}
        }
        Effect::None
    }

    fn write_16(&mut self, at: u64, value: u16, running: bool) -> Effect {
        let selected = self.selected_queue();
        match at {
            offset::CONFIG_VECTOR => return Effect::ConfigVector(value),
            offset::QUEUE_SELECT => self.queue_select = value,
            offset::QUEUE_VECTOR => return Effect::QueueVector(selected, value),
            offset::QUEUE_SIZE => {
                if let Some(queue) = self.changeable(running) {
                    // One that cannot be leaves the size as it was.
                    let _ = queue.try_set_size(value);
                }
            }
            offset::QUEUE_ENABLE => {
                if let Some(queue) = self.changeable(running) {
                    queue.set_ready(value == 1);
                }
            }
            _ => {}
        }
        Effect::None
    }

    fn write_32(&mut self, at: u64, value: u32, running: bool) {
        match at {
            offset::DEVICE_FEATURE_SELECT => self.device_select = value,
            offset::DRIVER_FEATURE_SELECT => self.driver_select = value,
            offset::DRIVER_FEATURE if !running => {
                let value = u64::from(value);
                match self.driver_select {
                    0 => self.accepted = self.accepted & !0xffff_ffff | value,
                    1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            offset::QUEUE_DESC..0x38 => self.write_address(at, value, running),
            _ => {}
        }
    }

    fn write_address(&mut self, at: u64, value: u32, running: bool) {
        let Some(queue) = self.changeable(running) else {
            return;
        };
        let (low, high) = match at % 8 {
            0 => (Some(value), None),
            4 => (None, Some(value)),
            _ => return,
        };
        match at & !7 {
            offset::QUEUE_DESC => queue.set_desc_table_address(low, high),
            offset::QUEUE_DRIVER => queue.set_avail_ring_address(low, high),
            offset::QUEUE_DEVICE => queue.set_used_ring_address(low, high),
            _ => {}
        }
    }

    /// The selected queue, if it may be changed: a driver sets it up before it enables it.
    fn changeable(&mut self, running: bool) -> Option<&mut Queue> {
        let selected = self.selected_queue();
        let queue = self.queues.get_mut(selected)?;
        (!running && !queue.ready()).then_some(queue)
    }
}
