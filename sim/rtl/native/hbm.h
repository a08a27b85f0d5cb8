// SPDX-License-Identifier: Apache-2.0
// One HBM2 pseudo-channel in time: the twin of hw/spec/hbm.py, function by function. docs/memory.md says what it models.
// Every constant comes from there (`Hbm`); tests/sim/test_hbm.py holds the two together.

#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

// As `parameters` in hw/spec/hbm.py, in its order.
struct Hbm {
    int64_t row_to_column, precharge, row_cycle, read_to_precharge, write_to_precharge, same_group, activate, read_done,
        read_to_write, write_to_read, refresh_interval, refresh_block, queue_beats, write_epoch, request,
        return_, ring, slots, cycles;
};
constexpr int HBM_PARAMETERS = sizeof(Hbm) / sizeof(int64_t);

class PseudoChannel {
   public:
    struct Beat {
        int64_t address, accepted, extra;  // in beats; cycles
    };
    struct Write {
        int64_t cycle, address, words;
    };
    std::deque<Beat> asked;        // reads that are not served
    std::deque<Write> writes;      // not drained
    std::deque<int64_t> arrivals;  // cycles of served beats; the caller takes them away

    explicit PseudoChannel(const Hbm& hbm)
        : p_(hbm), left_(hbm.queue_beats, 0), activates_(hbm.ring, LONG_AGO), columns_(hbm.ring, LONG_AGO) {}

    // Serves reads as far as it is determined, given every write that was accepted before cycle `known`.
    void serve(int64_t known) {
        while (!asked.empty()) {
            const Beat& beat = asked.front();
            int64_t& left = left_[served_ % p_.queue_beats];
            const int64_t ready = std::max(slot_of(beat.accepted) + p_.request, left);
            while (word_ < WORDS) {
                const int bank = bank_of(beat.address, word_);
                const Place at = place(bank, beat.address >> 8, ready, ready, false);
                if (at.column >= p_.write_epoch * epoch_) {
                    if (cycle_of(p_.write_epoch * epoch_) > known) return;
                    drain();
                    continue;
                }
                commit(bank, beat.address >> 8, at, false);
                last_read_ = std::max(last_read_, at.column);
                done_ = std::max(done_, at.column + p_.read_done);
                word_++;
            }
            word_ = 0;
            left = done_;
            const int64_t back = cycle_of(done_ + p_.return_) + beat.extra;
            arrived_ = std::max(back, arrived_ + 1);
            arrivals.push_back(arrived_);
            asked.pop_front();
            served_++;
        }
    }

   private:
    static constexpr int64_t LONG_AGO = -(int64_t{1} << 40), BARRED = 7;
    static constexpr int BANKS = 16, WORDS = 2;
    struct Place {
        int64_t column, activate;  // activate: -1 for none
    };
    struct Bank {
        int64_t row = -1, opened = LONG_AGO, closable = LONG_AGO, used = LONG_AGO;
    };

    Hbm p_;
    Bank banks_[BANKS];
    std::vector<int64_t> left_, activates_, columns_;
    int64_t served_ = 0, epoch_ = 1, last_read_ = LONG_AGO, last_write_ = LONG_AGO, last_group_ = -1, newest_ = 0;
    int64_t done_ = 0, arrived_ = -1;
    int word_ = 0;

    int64_t slot_of(int64_t cycle) const { return (cycle * p_.slots + p_.cycles - 1) / p_.cycles; }
    int64_t cycle_of(int64_t slot) const { return (slot * p_.cycles + p_.slots - 1) / p_.slots; }
    static int bank_of(int64_t address, int word) {
        return int((address >> 5 & 3) << 2 | (address >> 7 & 1) << 1 | word);
    }
    int64_t column_at(int64_t slot) const { return columns_[slot & (p_.ring - 1)]; }

    int64_t free_column(int64_t group, int64_t slot) const {
        for (;;) {
            if (column_at(slot) >> 3 == slot) slot += 1;
            else if (column_at(slot - 1) == ((slot - 1) << 3 | group)) slot += 1;
            else if (column_at(slot + 1) == ((slot + 1) << 3 | group)) slot += 3;
            else return slot;
        }
    }

    int64_t free_activate(int64_t slot) const {
        int64_t near = 1 - p_.activate;
        for (;;) {
            const int64_t phase = slot % p_.refresh_interval;
            if (slot >= p_.refresh_interval && phase < p_.refresh_block) {
                slot += p_.refresh_block - phase, near = 1 - p_.activate;
            } else if (near == p_.activate) {
                return slot;
            } else if (activates_[(slot + near) & (p_.ring - 1)] == slot + near) {
                slot += near + p_.activate, near = 1 - p_.activate;
            } else {
                near++;
            }
        }
    }

    int64_t interval(int64_t slot) const { return slot / p_.refresh_interval; }

    Place place(int number, int64_t row, int64_t ready, int64_t floor, bool write) const {
        const Bank& bank = banks_[number];
        const int64_t group = number & 3;
        ready = std::max(ready, newest_ - p_.ring + 2);
        floor = std::max({floor, ready, bank.used + p_.same_group});
        if (bank.row == row) {
            int64_t column = std::max(floor, bank.opened + p_.row_to_column);
            if (!write) column = free_column(group, column);
            if (interval(column) == interval(bank.opened)) return {column, -1};
        }
        int64_t activate = std::max(ready, bank.opened + p_.row_cycle);
        if (bank.row >= 0) {
            int64_t closed = std::max(ready, bank.closable) + p_.precharge;
            const int64_t refreshed = (interval(bank.opened) + 1) * p_.refresh_interval;
            if (bank.row == row || closed >= refreshed) closed = refreshed + p_.refresh_block;
            activate = std::max(activate, closed);
        }
        for (;;) {
            activate = free_activate(activate);
            int64_t column = std::max(floor, activate + p_.row_to_column);
            if (!write) column = free_column(group, column);
            if (interval(column) == interval(activate)) return {column, activate};
            activate = interval(column) * p_.refresh_interval + p_.refresh_block;
        }
    }

    void commit(int number, int64_t row, const Place& at, bool write) {
        Bank& bank = banks_[number];
        if (at.activate >= 0) {
            bank.row = row, bank.opened = at.activate, bank.closable = at.activate + p_.row_cycle - p_.precharge;
            activates_[at.activate & (p_.ring - 1)] = at.activate;
        }
        bank.used = at.column;
        bank.closable = std::max(bank.closable, at.column + (write ? p_.write_to_precharge : p_.read_to_precharge));
        newest_ = std::max(newest_, at.column);
        columns_[at.column & (p_.ring - 1)] = at.column << 3 | (number & 3);
    }

    void drain() {
        const int64_t end = epoch_++ * p_.write_epoch, cycle = cycle_of(end);
        const int64_t begin = std::max(end, last_read_ + p_.read_to_write);
        int64_t first = -1;
        for (; !writes.empty() && writes.front().cycle < cycle; writes.pop_front()) {
            const Write& write = writes.front();
            for (int word = 0; word < WORDS; word++) {
                if (!(write.words >> word & 1)) continue;
                const int bank = bank_of(write.address, word);
                const int64_t step = last_group_ == (bank & 3) ? p_.same_group : 1;
                const int64_t floor = std::max(begin, last_write_ + step);
                const Place at = place(bank, write.address >> 8, end, floor, true);
                commit(bank, write.address >> 8, at, true);
                last_write_ = at.column, last_group_ = bank & 3;
                if (first < 0) first = at.column;
            }
        }
        if (first < 0) return;
        const int64_t last = last_write_ + p_.write_to_read;
        for (int64_t slot = std::max(first - p_.read_to_write + 1, last - p_.ring + 1); slot < last; slot++)
            columns_[slot & (p_.ring - 1)] = slot << 3 | BARRED;
        newest_ = std::max(newest_, last - 1);
    }
};
