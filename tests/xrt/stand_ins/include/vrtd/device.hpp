// Stand-in for SLASH's header: what the bridge uses of it, and no more.
#pragma once

namespace vrtd {
class Device {};
} // namespace vrtd
