//! What is kept and what makes room: pure. The driver and the simulator both run this.
//!
//! A limit is cut into slots of one size. Bytes are counted by slots, never by runs: whatever a slot
//! holds, it costs a slot, so the limit holds whatever happens inside.
//!
//! A full cache keeps what it has. An epoch reads every clip once in a new order, so a policy that lets
//! each miss push something out (LRU, FIFO) drops most clips shortly before they come again; whoever
//! just stays hits as often as the cache is a part of the data. So a miss finds room only in a slot that
//! was not read from for [`CHANCES`] laps of a hand, which moves on by one slot for every slot's worth of misses.

use std::ops::Range;

/// Bytes of the table's header, before its entries.
pub(super) const HEADER: u64 = 4096;
/// Bytes of a slot's entry in the table.
pub(super) const ENTRY: u64 = 40;
/// Bytes of a run's record in its slot's index.
pub(super) const RECORD: u64 = 32;
/// Laps of the hand for which a slot stays after it was last read from.
pub(super) const CHANCES: u8 = 4;
/// Slots are no smaller than this: a page of index, a page of runs.
const LEAST: u64 = 8192;
const PAGE: u64 = 4096;

/// How a limit is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The hard limit, bytes.
    pub limit: u64,
    /// Slots; 0 where the limit holds none.
    pub slots: u32,
    /// Bytes of a slot, index and runs.
    pub slot_bytes: u64,
    /// Of these, the index at the slot's start.
    pub index_bytes: u64,
}

impl Geometry {
    /// Slots of 64 MiB; smaller ones where fewer than 32 would fit, larger ones beyond 4,096.
    pub fn of(limit: u64) -> Self {
        let slot_bytes = ((limit / 32).min(64 << 20).max(limit / 4096) / PAGE * PAGE).max(LEAST);
        // The table's last page may be begun.
        let slots = (limit.saturating_sub(HEADER + PAGE) / (slot_bytes + ENTRY)) as u32;
        // A record for every 8 KiB of runs.
        Self { limit, slots, slot_bytes, index_bytes: (slot_bytes / 256).next_multiple_of(PAGE) }
    }

    /// The largest run that can be kept.
    pub fn largest_run(&self) -> u64 {
        match self.slots {
            0 => 0,
            _ => self.slot_bytes - self.index_bytes,
        }
    }

    /// The most bytes that the cache's files can take.
    pub fn bytes(&self) -> u64 {
        HEADER
            + (u64::from(self.slots) * ENTRY).next_multiple_of(PAGE)
            + u64::from(self.slots) * self.slot_bytes
    }

    fn records(&self) -> u32 {
        (self.index_bytes / RECORD) as u32
    }
}

/// The dataset that a slot's runs are of: the first half of its digest.
pub type DatasetTag = [u8; 16];

/// A slot, as all processes know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Grows by one whenever the slot is emptied.
    pub generation: u32,
    /// All zero: never used.
    pub dataset: DatasetTag,
    /// End of the published runs in the slot's file.
    pub end: u64,
    /// Published runs.
    pub entries: u32,
    /// A run did not fit any more.
    pub sealed: bool,
    pub chances: u8,
}

/// A slot that its holder appends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub slot: u32,
    pub generation: u32,
    pub end: u64,
    pub entries: u32,
    /// Runs that were thrown out for it.
    pub evicted: u32,
}

/// Where a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub slot: u32,
    pub generation: u32,
    /// First byte in the slot's file.
    pub at: u64,
    /// Number of its record.
    pub record: u32,
}

/// All slots and the hand.
#[derive(Clone, Debug)]
pub struct Table {
    pub geometry: Geometry,
    pub hand: u32,
    pub slots: Vec<Slot>,
}

impl Table {
    /// An empty cache.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, hand: 0, slots: vec![Slot::default(); geometry.slots as usize] }
    }

    /// A slot to append to: one of the dataset's that its writer left, else an empty one, else one that
    /// nobody has read from for long. `lock` takes a slot for the caller alone, and fails where anyone
    /// reads or writes it; the slot of the answer is locked, and no other.
    pub fn claim(&mut self, dataset: &DatasetTag, mut lock: impl FnMut(u32) -> bool) -> Option<Open> {
        let left = |s: &Slot| s.dataset == *dataset && !s.sealed;
        let empty = |s: &Slot| s.dataset == DatasetTag::default();
        for slot in self.places(left) {
            if lock(slot) {
                return Some(self.open(slot, 0));
            }
        }
        for slot in self.places(empty) {
            if lock(slot) {
                return Some(self.emptied(slot, dataset));
            }
        }
        let count = self.geometry.slots;
        if count == 0 {
            return None;
        }
        let passed = &mut self.slots[self.hand as usize].chances;
        *passed = passed.saturating_sub(1);
        self.hand = (self.hand + 1) % count;
        for slot in (self.hand..count).chain(0..self.hand) {
            if self.slots[slot as usize].chances == 0 && lock(slot) {
                return Some(self.emptied(slot, dataset));
            }
        }
        None
    }

    /// A slot was read from.
    pub fn touch(&mut self, slot: u32) {
        self.slots[slot as usize].chances = CHANCES;
    }

    /// What an appender has done becomes known.
    pub fn publish(&mut self, open: &Open, sealed: bool) {
        let slot = &mut self.slots[open.slot as usize];
        (slot.end, slot.entries, slot.sealed) = (open.end, open.entries, sealed);
    }

    /// Nobody uses the cache: what other datasets left may make room at once.
    pub fn forsake_others(&mut self, dataset: &DatasetTag) {
        for slot in self.slots.iter_mut().filter(|s| s.dataset != *dataset) {
            slot.chances = 0;
        }
    }

    fn places(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<u32> {
        (0..self.geometry.slots).filter(|&i| wanted(&self.slots[i as usize])).collect()
    }

    fn emptied(&mut self, number: u32, dataset: &DatasetTag) -> Open {
        let slot = &mut self.slots[number as usize];
        let evicted = slot.entries;
        *slot = Slot {
            generation: slot.generation.wrapping_add(1),
            dataset: *dataset,
            end: self.geometry.index_bytes,
            entries: 0,
            sealed: false,
            chances: CHANCES,
        };
        self.open(number, evicted)
    }

    fn open(&self, number: u32, evicted: u32) -> Open {
        let Slot { generation, end, entries, .. } = self.slots[number as usize];
        Open { slot: number, generation, end, entries, evicted }
    }
}

/// What one process appends: at most one slot is open.
#[derive(Clone, Debug)]
pub struct Filler {
    geometry: Geometry,
    open: Option<Open>,
    /// Bytes of misses to let pass before a full cache is asked again.
    pass: u64,
}

impl Filler {
    /// Nothing open.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, open: None, pass: 0 }
    }

    /// The slot being filled.
    pub fn open(&self) -> Option<&Open> {
        self.open.as_ref()
    }

    /// The place of a run of `bytes`; `None`: it is not kept. `claim` publishes the slot that is full, if
    /// any, gives it back and answers as [`Table::claim`].
    ///
    /// # Errors
    /// Those of `claim`; then nothing is open.
    pub fn place<E>(
        &mut self,
        bytes: u64,
        mut claim: impl FnMut(Option<Open>) -> Result<Option<Open>, E>,
    ) -> Result<Option<Place>, E> {
        if bytes == 0 || bytes > self.geometry.largest_run() {
            return Ok(None);
        }
        loop {
            if let Some(open) = self.open.as_mut().filter(|o| fits(&self.geometry, o, bytes)) {
                let Open { slot, generation, end: at, entries: record, .. } = *open;
                open.end += bytes;
                open.entries += 1;
                return Ok(Some(Place { slot, generation, at, record }));
            }
            let full = self.open.take();
            if full.is_none() && self.pass >= bytes {
                self.pass -= bytes;
                return Ok(None);
            }
            self.open = claim(full)?;
            if self.open.is_none() {
                self.pass = self.geometry.slot_bytes.saturating_sub(bytes);
                return Ok(None);
            }
        }
    }
}

/// Where runs lie in a slot's file.
pub(super) fn payload(geometry: &Geometry) -> Range<u64> {
    geometry.index_bytes..geometry.slot_bytes
}

fn fits(geometry: &Geometry, open: &Open, bytes: u64) -> bool {
    open.entries < geometry.records() && open.end + bytes <= geometry.slot_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn every_limit_is_cut_so_that_it_holds() {
        for limit in [0, 1, 5000, 12_327, 1 << 20, 100 << 20, 10 << 30, 200 << 30, 10 << 40, 900 << 40] {
            let g = Geometry::of(limit);
            assert!(g.slots == 0 || g.bytes() <= limit, "{g:?}");
            assert!(g.slots <= 4096 && g.index_bytes < g.slot_bytes, "{g:?}");
            assert!(limit < 1 << 20 || g.bytes() * 100 > limit * 96, "most of it is used: {g:?}");
        }
        let g = Geometry::of(200 << 30);
        assert_eq!((g.slot_bytes, g.slots), (64 << 20, 3199));
    }

    /// Two processes fill, read, and die; the model knows what every slot must hold.
    #[derive(Clone, Debug)]
    enum Act {
        Put { process: usize, bytes: u64 },
        Read { pick: usize },
        Pin { pick: usize },
        Unpin,
        Die { process: usize },
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            8 => (0..3usize, 1u64..9000).prop_map(|(process, bytes)| Act::Put { process, bytes }),
            3 => any::<usize>().prop_map(|pick| Act::Read { pick }),
            1 => any::<usize>().prop_map(|pick| Act::Pin { pick }),
            1 => Just(Act::Unpin),
            1 => (0..3usize).prop_map(|process| Act::Die { process }),
        ];
        proptest::collection::vec(act, 1..300)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn no_slot_has_two_writers_and_none_that_is_read_is_emptied(acts in acts(), slots in 0u64..7) {
            let geometry = Geometry { limit: 0, slots: slots as u32, slot_bytes: 12_288, index_bytes: 4096 };
            let mut table = Table::new(geometry);
            let datasets = [[1; 16], [1; 16], [2; 16]];
            let mut fillers: Vec<Filler> = (0..3).map(|_| Filler::new(geometry)).collect();
            let mut pinned: Option<u32> = None;
            // Generation and bytes of what each slot must hold, in order.
            let mut held: HashMap<u32, (u32, Vec<Range<u64>>)> = HashMap::new();
            for act in acts {
                let locked: HashSet<u32> =
                    fillers.iter().filter_map(|f| f.open().map(|o| o.slot)).chain(pinned).collect();
                match act {
                    Act::Put { process, bytes } => {
                        let own = fillers[process].open().map(|o| o.slot);
                        let place = fillers[process].place(bytes, |full: Option<Open>| {
                            if let Some(full) = &full {
                                table.publish(full, true);
                            }
                            // What the caller gave back is nobody's.
                            let taken = |slot: &u32| {
                                locked.contains(slot) && (Some(*slot) != own || pinned == Some(*slot))
                            };
                            Ok::<_, ()>(table.claim(&datasets[process], |slot| !taken(&slot)))
                        });
                        let Some(place) = place.unwrap() else { continue };
                        prop_assert!(bytes <= geometry.largest_run());
                        let others = (0..3).filter(|&p| p != process);
                        for open in others.filter_map(|p| fillers[p].open()) {
                            prop_assert_ne!(open.slot, place.slot);
                        }
                        let (generation, runs) = held.entry(place.slot).or_default();
                        if *generation != place.generation {
                            prop_assert!(!locked.contains(&place.slot) || Some(place.slot) == own);
                            prop_assert!(pinned != Some(place.slot));
                            (*generation, *runs) = (place.generation, Vec::new());
                        }
                        prop_assert_eq!(place.record as usize, runs.len());
                        prop_assert_eq!(place.at, runs.last().map_or(4096, |r| r.end));
                        prop_assert!(place.at + bytes <= geometry.slot_bytes);
                        prop_assert_eq!(table.slots[place.slot as usize].dataset, datasets[process]);
                        runs.push(place.at..place.at + bytes);
                        table.publish(fillers[process].open().unwrap(), false);
                    }
                    Act::Read { pick } if slots > 0 => table.touch((pick % slots as usize) as u32),
                    Act::Pin { pick } if slots > 0 => pinned = Some((pick % slots as usize) as u32),
                    Act::Read { .. } | Act::Pin { .. } => {}
                    Act::Unpin => pinned = None,
                    Act::Die { process } => fillers[process] = Filler::new(geometry),
                }
            }
        }
    }

    /// One process puts runs that fill a slot each.
    fn put(table: &mut Table, filler: &mut Filler, dataset: u8) -> Option<Place> {
        let bytes = table.geometry.largest_run();
        let place = filler.place(bytes, |full: Option<Open>| {
            if let Some(full) = full {
                table.publish(&full, true);
            }
            Ok::<_, ()>(table.claim(&[dataset; 16], |_| true))
        });
        place.unwrap()
    }

    #[test]
    fn a_full_cache_keeps_what_is_read_and_gives_up_what_is_not() {
        let mut table = Table::new(Geometry { limit: 0, slots: 3, slot_bytes: 12_288, index_bytes: 4096 });
        let mut filler = Filler::new(table.geometry);
        let slots: Vec<u32> = (0..3).map(|_| put(&mut table, &mut filler, 1).unwrap().slot).collect();
        assert_eq!(slots, [0, 1, 2]);
        // Slots 0 and 1 are read from all the time, 2 never.
        let kept: Vec<Place> = (0..100)
            .filter_map(|_| {
                table.touch(0);
                table.touch(1);
                put(&mut table, &mut filler, 1)
            })
            .collect();
        assert!(!kept.is_empty() && kept.iter().all(|p| p.slot == 2), "{kept:?}");
        assert!(kept.len() <= 100 / (3 * usize::from(CHANCES) - 2), "only once in some laps: {}", kept.len());
        // Another dataset's slots make room as soon as nobody uses them.
        table.forsake_others(&[9; 16]);
        let mut filler = Filler::new(table.geometry);
        assert!((0..3).all(|_| put(&mut table, &mut filler, 9).is_some()));
    }

    #[test]
    fn what_a_dead_writer_left_is_filled_up() {
        let mut table = Table::new(Geometry { limit: 0, slots: 3, slot_bytes: 12_288, index_bytes: 4096 });
        let mut first = Filler::new(table.geometry);
        let claim = |table: &mut Table, f: &mut Filler| {
            let place = f.place(1000, |_| Ok::<_, ()>(table.claim(&[1; 16], |_| true))).unwrap();
            table.publish(f.open().unwrap(), false);
            place.unwrap()
        };
        assert_eq!(claim(&mut table, &mut first).at, 4096);
        let mut second = Filler::new(table.geometry);
        assert_eq!(claim(&mut table, &mut second), Place { slot: 0, generation: 1, at: 5096, record: 1 });
    }
}
