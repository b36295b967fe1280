//! Devices at fixed addresses, connected to consoles, interrupts and the machine's end.

use std::sync::Arc;

use devices::acpi::sleep;
use devices::acpi::{EventDevice, GedEvent, PowerEvent, SleepDevice};
use devices::bus::{Bus, BusDevice};
use devices::debug_console::DebugConsole;
use devices::i8042::{self, I8042};
use devices::nmi_status::{self, NmiStatus};
use devices::rtc::{Cmos, Pl031};
use devices::serial::{Pl011, SerialPort, Uart16550, Wiring};

use super::MachineError;
use super::control::{Control, Ending};
use super::isa::Interrupts;
use super::vcpu::Buses;
use crate::console::{InputSink, Port};
use crate::plan::{EventDevicePlan, Isa, Plan, PlatformDevices, Registers, SerialPlan, SleepPlan};

/// The machine's ends of the host's consoles; they outlive the machine.
#[derive(Clone, Default)]
pub struct Consoles {
    /// Of the serial port.
    pub serial: Option<Port>,
    /// Of the x86 debug console.
    pub debug: Option<Port>,
    /// Of the virtio console.
    pub virtio: Option<Port>,
}

impl Consoles {
    /// Lets go of a machine that is to be stopped: input stays on the host until the next one is
    /// there, and no vCPU waits for somebody to read its output.
    pub fn release(&self) {
        if let Some(serial) = &self.serial {
            serial.detach();
        }
        self.ports().for_each(Port::hang_up);
    }

    /// Makes output wait for its reader again, or empties its file, for a new machine.
    pub fn take(&self) {
        self.ports().for_each(Port::pick_up);
    }

    /// Holds back what would change a machine that is to be paused: input stays on the host. No vCPU
    /// waits for somebody to read its output; what nobody reads is kept for [`Consoles::settle`].
    pub fn hold(&self) {
        self.ports().for_each(Port::hold);
    }

    /// Undoes [`Consoles::hold`].
    pub fn go_on(&self) {
        self.ports().for_each(Port::go_on);
    }

    /// Waits until output is read that the calling vCPU's thread could not wait for before.
    pub fn settle(&self) {
        self.ports().for_each(Port::settle);
    }

    fn ports(&self) -> impl Iterator<Item = &Port> {
        [&self.serial, &self.debug, &self.virtio]
            .into_iter()
            .flatten()
    }
}

/// Presses the guest's power button.
#[derive(Clone)]
pub struct PowerButton(Arc<EventDevice>);

impl PowerButton {
    /// Asks the guest to shut down; what it does is up to the guest.
    pub fn press(&self) {
        self.0.notify(GedEvent::PowerButton);
    }
}

/// A serial port takes what its FIFO has room for.
struct SerialInput(Arc<dyn SerialPort>);

impl InputSink for SerialInput {
    fn accept(&self, bytes: &[u8]) -> usize {
        self.0.enqueue_input(bytes)
    }
}

/// All devices of a machine, reachable from its vCPUs.
pub struct Devices {
    /// Where vCPUs find them.
    pub buses: Buses,
    /// What presses the power button.
    pub power_button: Option<PowerButton>,
}

impl Devices {
    /// Builds every device of the plan.
    pub fn build(
        plan: &Plan,
        interrupts: &Interrupts,
        consoles: &Consoles,
        control: &Arc<Control>,
    ) -> Result<Self, MachineError> {
        let PlatformDevices {
            serial,
            rtc,
            events,
            sleep,
            debug_console,
        } = &plan.devices;
        let builder = Builder {
            mmio: Bus::new(),
            pio: Bus::new(),
            interrupts,
            control,
        };
        builder.rtc(*rtc)?;
        if let Some(serial) = serial {
            builder.serial(serial, consoles.serial.as_ref())?;
        }
        if let Some(sleep) = sleep {
            builder.sleep(sleep)?;
        }
        let power_button = events.as_ref().map(|events| builder.events(events));
        let power_button = power_button.transpose()?;
        if let Some(port) = debug_console {
            builder.debug_console(*port, consoles.debug.as_ref())?;
        }
        if plan.isa == Isa::X86_64 {
            builder.keyboard_reset()?;
            builder.nmi_status()?;
        }
        let mut buses = Buses::new(builder.mmio, builder.pio);
        interrupts.place(&mut buses)?;
        Ok(Self {
            buses,
            power_button,
        })
    }
}

struct Builder<'a> {
    mmio: Bus,
    pio: Bus,
    interrupts: &'a Interrupts,
    control: &'a Arc<Control>,
}

impl Builder<'_> {
    fn place(
        &self,
        name: &'static str,
        registers: Registers,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), MachineError> {
        let placed = match registers {
            Registers::Pio { base, size } => self.pio.insert(base.into(), size.into(), device),
            Registers::Mmio(range) => self.mmio.insert(range.start, range.size, device),
        };
        placed.map_err(|source| MachineError::Place {
            device: name,
            source,
        })
    }

    fn rtc(&self, registers: Registers) -> Result<(), MachineError> {
        let device: Arc<dyn BusDevice> = match registers {
            Registers::Pio { .. } => Arc::new(Cmos::new()),
            Registers::Mmio(_) => Arc::new(Pl031::new()),
        };
        self.place("real-time clock", registers, device)
    }

    fn serial(&self, plan: &SerialPlan, console: Option<&Port>) -> Result<(), MachineError> {
        let room = console.cloned();
        let wiring = Wiring {
            line: self.interrupts.line(plan.gsi)?,
            output: match console {
                Some(port) => Box::new(port.clone()),
                None => Box::new(std::io::sink()),
            },
            on_room: Box::new(move || {
                if let Some(port) = &room {
                    port.room_again();
                }
            }),
        };
        let device: Arc<dyn SerialPort> = match plan.registers {
            Registers::Pio { .. } => Arc::new(Uart16550::new(wiring)),
            Registers::Mmio(_) => Arc::new(Pl011::new(wiring)),
        };
        if let Some(port) = console {
            port.attach(Arc::new(SerialInput(Arc::clone(&device))));
        }
        self.place("serial port", plan.registers, device)
    }

    fn events(&self, plan: &EventDevicePlan) -> Result<PowerButton, MachineError> {
        let device = Arc::new(EventDevice::new(self.interrupts.line(plan.gsi)?));
        self.place("event device", plan.registers, Arc::clone(&device) as _)?;
        Ok(PowerButton(device))
    }

    fn sleep(&self, plan: &SleepPlan) -> Result<(), MachineError> {
        let control = Arc::clone(self.control);
        let device = SleepDevice::new(Box::new(move |event| {
            control.end(match event {
                PowerEvent::PowerOff => Ending::PowerOff,
                PowerEvent::Reset => Ending::Reset,
            });
        }));
        let registers = Registers::Pio {
            base: plan.base,
            size: sleep::SIZE as u16,
        };
        self.place("ACPI sleep registers", registers, Arc::new(device))
    }

    fn debug_console(&self, port: u16, console: Option<&Port>) -> Result<(), MachineError> {
        let output: Box<dyn std::io::Write + Send> = match console {
            Some(port) => Box::new(port.clone()),
            None => Box::new(std::io::sink()),
        };
        let registers = Registers::Pio {
            base: port,
            size: 1,
        };
        self.place(
            "debug console",
            registers,
            Arc::new(DebugConsole::new(output)),
        )
    }

    /// Guests ask it where an NMI comes from.
    fn nmi_status(&self) -> Result<(), MachineError> {
        let registers = Registers::Pio {
            base: nmi_status::PORT,
            size: 1,
        };
        self.place("NMI status register", registers, Arc::new(NmiStatus))
    }

    /// Guests that know no other way reset themselves through the keyboard controller.
    fn keyboard_reset(&self) -> Result<(), MachineError> {
        let control = Arc::clone(self.control);
        let device = I8042::new(Box::new(move || control.end(Ending::Reset)));
        let registers = Registers::Pio {
            base: i8042::PORT,
            size: 1,
        };
        self.place("keyboard controller", registers, Arc::new(device))
    }
}
