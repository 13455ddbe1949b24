// The C++ rival of the deadline heap: a priority_queue that keeps stale entries and an
// unordered_map that says which entry of a lease is the current one. Same calls, same answers.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

using Entry = std::pair<std::int64_t, std::uint64_t>;  // deadline, id

struct LazyHeap {
    std::priority_queue<Entry, std::vector<Entry>, std::greater<Entry>> queue;
    std::unordered_map<std::uint64_t, std::int64_t> deadlines;
};

extern "C" {

LazyHeap *lazy_new(std::size_t expected) {
    auto *heap = new LazyHeap;
    heap->deadlines.reserve(expected);
    return heap;
}

void lazy_delete(LazyHeap *heap) { delete heap; }

std::size_t lazy_size(const LazyHeap *heap) { return heap->deadlines.size(); }

void lazy_push(LazyHeap *heap, const std::uint64_t *ids, const std::int64_t *ends, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i)
        if (heap->deadlines.emplace(ids[i], ends[i]).second)
            heap->queue.emplace(ends[i], ids[i]);
}

void lazy_extend(LazyHeap *heap, const std::uint64_t *ids, const std::int64_t *ends, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const auto found = heap->deadlines.find(ids[i]);
        if (found != heap->deadlines.end() && ends[i] > found->second) {
            found->second = ends[i];
            heap->queue.emplace(ends[i], ids[i]);
        }
    }
}

void lazy_remove(LazyHeap *heap, const std::uint64_t *ids, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i)
        heap->deadlines.erase(ids[i]);
}

std::size_t lazy_pop(LazyHeap *heap, std::int64_t now, std::uint64_t *ids, std::size_t limit) {
    std::size_t n = 0;
    while (n < limit && !heap->queue.empty() && heap->queue.top().first <= now) {
        const auto [end, id] = heap->queue.top();
        heap->queue.pop();
        const auto found = heap->deadlines.find(id);
        if (found != heap->deadlines.end() && found->second == end) {
            heap->deadlines.erase(found);
            ids[n++] = id;
        }
    }
    return n;
}
}
