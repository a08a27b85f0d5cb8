// Stand-in for SLASH's header: what the bridge uses of it, and no more.
#pragma once

namespace vrt {
enum class Platform { HARDWARE, EMULATION, SIMULATION, UNKNOWN };
} // namespace vrt
