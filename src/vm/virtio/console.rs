//! virtio-console with one port (virtio 1.2, 5.3): what the guest writes goes to
//! a file of the host; nothing is ever sent to the guest.
//!
//! The sink never holds up the guest or the event loop: what it does not take at
//! once is dropped, and counted in the log.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use event_manager::{EventOps, Events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, WriteVolatile};

use super::device::{Active, Device, DeviceError, OWN_DATA_FIRST};
use super::drain::{SEGMENTS_MAX, Wake, drain};
use super::state::DeviceState;

const TRANSMIT: usize = 1;
/// Receive and transmit queue. Linux fills the first with pages at boot, so it is
/// small.
const QUEUE_SIZES: [u16; 2] = [4, 32];

/// Bytes taken from one chain; the rest is dropped.
const CHAIN_MAX: usize = 64 * 1024;

/// Bytes written at a time: what poll(2) promises that a pipe takes without
/// blocking (PIPE_BUF).
const WRITE_MAX: usize = 4096;

/// The device.
pub struct Console {
    sink: Sink,
    active: Option<Active>,
    again: Wake,
}

impl Console {
    /// A device that writes to `sink`.
    pub fn new(sink: File) -> Result<Self, DeviceError> {
        Ok(Self {
            sink: Sink::new(sink),
            active: None,
            again: Wake::new()?,
        })
    }

    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let Some(queue) = active.queues.get_mut(TRANSMIT).filter(|q| is_ready(q)) else {
            return Ok(());
        };
        let sink = &mut self.sink;
        let memory = &active.memory;
        let drained = drain(queue, memory, |chain| {
            sink.take(memory, chain);
            0
        })
        .map_err(|source| DeviceError::Queue {
            index: TRANSMIT,
            source,
        })?;
        if drained.notify {
            active.interrupt.signal_used_queue();
        }
        if drained.more {
            self.again.request();
        }
        Ok(())
    }
}

fn is_ready(queue: &virtio_queue::Queue) -> bool {
    virtio_queue::QueueT::ready(queue)
}

/// Where the output goes.
struct Sink {
    file: File,
    /// Bytes dropped since the last one that was written.
    dropped: u64,
}

impl Sink {
    fn new(file: File) -> Self {
        Self {
            file: nonblocking(file),
            dropped: 0,
        }
    }

    fn take(&mut self, memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) {
        let mut left = CHAIN_MAX;
        for descriptor in chain.take(SEGMENTS_MAX).filter(|d| !d.is_write_only()) {
            let len = descriptor.len() as usize;
            let taken = len.min(left);
            left -= taken;
            let mut written = 0;
            // A buffer across two regions of RAM comes as two slices.
            for slice in memory
                .get_slices(descriptor.addr(), taken)
                .map_while(Result::ok)
            {
                let now = self.write(&slice);
                written += now;
                if now < slice.len() {
                    break;
                }
            }
            self.dropped += (len - written) as u64;
        }
    }

    /// Writes as much as the file takes now.
    fn write<B: vm_memory::bitmap::BitmapSlice>(
        &mut self,
        data: &vm_memory::VolatileSlice<'_, B>,
    ) -> usize {
        let mut written = 0;
        while written < data.len() && self.writable() {
            let len = (data.len() - written).min(WRITE_MAX);
            let chunk = data.subslice(written, len);
            match chunk.and_then(|chunk| (&self.file).write_volatile(&chunk)) {
                Ok(0) | Err(_) => break,
                Ok(n) => written += n,
            }
            self.report();
        }
        written
    }

    fn writable(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        let now = Timespec::default();
        matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
    }

    fn report(&mut self) {
        if self.dropped > 0 {
            log::warn!("console: {} bytes dropped", self.dropped);
            self.dropped = 0;
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.report();
    }
}

/// The same file, such that a write never blocks. Pipes and terminals are opened
/// anew: setting O_NONBLOCK on what we were given would set it for everybody who
/// shares it, as the shell that started us. Where that fails, poll(2) before each
/// small write has to do.
fn nonblocking(file: File) -> File {
    let shared = file.metadata().is_ok_and(|meta| {
        let kind = meta.file_type();
        kind.is_fifo() || kind.is_char_device()
    });
    if !shared {
        return file;
    }
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .unwrap_or(file)
}

impl Device for Console {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn name(&self) -> &'static str {
        "console"
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {
        // Without VIRTIO_CONSOLE_F_SIZE, F_MULTIPORT and F_EMERG_WRITE no field
        // means anything.
    }

    fn activate(&mut self, active: Active) -> Result<(), DeviceError> {
        self.active = Some(active);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.sink.report();
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn freeze(&self) -> Result<DeviceState, &'static str> {
        Ok(DeviceState::Console)
    }

    fn thaw(&mut self, state: DeviceState) -> Result<(), DeviceError> {
        match state {
            DeviceState::Console => Ok(()),
            _ => Err(DeviceError::State),
        }
    }

    fn queue_event(&mut self, index: usize) -> Result<(), DeviceError> {
        if index == TRANSMIT {
            self.transmit()?;
        }
        Ok(())
    }

    fn register(&mut self, ops: &mut EventOps) -> Result<(), DeviceError> {
        self.again.register(ops, OWN_DATA_FIRST)
    }

    fn own_event(&mut self, _events: Events, _ops: &mut EventOps) -> Result<(), DeviceError> {
        self.again.clear();
        self.transmit()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{GuestQueue, WRITE, active, memory};
    use super::*;
    use std::io::{Read, Seek};
    use std::os::fd::OwnedFd;
    use vm_memory::{Bytes, GuestAddress};

    const RAM_LEN: usize = 0x4_0000;
    const BUFFER: u64 = 0x1_0000;

    struct Bench {
        console: Console,
        memory: GuestMemoryMmap,
        queue: GuestQueue,
    }

    fn bench(sink: File) -> Bench {
        let memory = memory(RAM_LEN);
        let receive = GuestQueue::new(&memory, 0x1000, 4);
        let queue = GuestQueue::new(&memory, 0x2000, 32);
        let mut console = Console::new(sink).unwrap();
        console
            .activate(active(&memory, &[&receive, &queue]).0)
            .unwrap();
        Bench {
            console,
            memory,
            queue,
        }
    }

    impl Bench {
        fn print(&mut self, text: &[u8]) {
            self.memory.write_slice(text, GuestAddress(BUFFER)).unwrap();
            self.queue.add(&[(BUFFER, text.len() as u32, 0)]);
            self.console.queue_event(TRANSMIT).unwrap();
            assert_eq!(self.queue.drain_used().len(), 1);
        }
    }

    #[test]
    fn output_reaches_the_file_byte_for_byte() {
        let mut file = tempfile::tempfile().unwrap();
        let mut bench = bench(file.try_clone().unwrap());
        bench.print(b"one\n");
        bench.print(&[0, 0x1b, 0xff]);
        let long = vec![b'x'; 10_000];
        bench.print(&long);
        let mut text = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut text).unwrap();
        assert_eq!(text[..7], *b"one\n\0\x1b\xff");
        assert_eq!(text[7..], long);
        assert_eq!(bench.console.sink.dropped, 0);
    }

    #[test]
    fn a_full_pipe_drops_and_counts_and_recovers() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut bench = bench(File::from(OwnedFd::from(writer)));
        let block = vec![b'x'; 0x1_0000];
        bench.print(&block);
        bench.print(&block);
        assert_eq!(bench.console.sink.dropped, 0x1_0000);
        let mut reader = reader;
        let mut taken = vec![0; 0x1_0000];
        reader.read_exact(&mut taken).unwrap();
        bench.print(b"again");
        assert_eq!(bench.console.sink.dropped, 0);
        reader.read_exact(&mut taken[..5]).unwrap();
        assert_eq!(taken[..5], *b"again");
    }

    #[test]
    fn the_pipe_that_was_handed_in_stays_blocking() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let ours = writer.try_clone().unwrap();
        let _bench = bench(File::from(OwnedFd::from(writer)));
        let flags = rustix::fs::fcntl_getfl(&ours).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }

    #[test]
    fn a_closed_pipe_is_survived() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut bench = bench(File::from(OwnedFd::from(writer)));
        drop(reader);
        bench.print(b"into the void");
        assert_eq!(bench.console.sink.dropped, 13);
    }

    #[test]
    fn odd_buffers_print_only_what_is_in_ram_and_readable() {
        let mut file = tempfile::tempfile().unwrap();
        let mut bench = bench(file.try_clone().unwrap());
        let end = RAM_LEN as u64;
        bench
            .memory
            .write_slice(b"abcd", GuestAddress(end - 4))
            .unwrap();
        for chain in [
            vec![(end - 4, u32::MAX, 0)],
            vec![(end, 4, 0)],
            vec![(u64::MAX, 4, 0)],
            vec![(BUFFER, 0, 0)],
            vec![(end - 4, 4, WRITE), (end - 2, 2, 0)],
        ] {
            bench.queue.add(&chain);
            bench.console.queue_event(TRANSMIT).unwrap();
        }
        assert_eq!(bench.queue.drain_used().len(), 5);
        let mut text = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut text).unwrap();
        assert_eq!(text, b"abcdcd");
    }

    #[test]
    fn a_chain_is_capped() {
        let file = tempfile::tempfile().unwrap();
        let mut bench = bench(file.try_clone().unwrap());
        bench.queue.add(&[(0, RAM_LEN as u32, 0), (0, 16, 0)]);
        bench.console.queue_event(TRANSMIT).unwrap();
        assert_eq!(file.metadata().unwrap().len(), CHAIN_MAX as u64);
    }

    #[test]
    fn the_receive_queue_is_accepted_and_left_alone() {
        let file = tempfile::tempfile().unwrap();
        let mut bench = bench(file);
        bench.console.queue_event(0).unwrap();
        bench.console.reset();
        bench.console.queue_event(TRANSMIT).unwrap();
    }
}
