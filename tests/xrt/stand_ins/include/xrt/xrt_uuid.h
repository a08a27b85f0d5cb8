// Stand-in for XRT's header: what the bridge uses of it, and no more.
#pragma once

namespace xrt {
class uuid {};
} // namespace xrt
