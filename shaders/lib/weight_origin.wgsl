// Where the weight begins in its three bindings, in words: a kernel that adds up the products with several of
// them moves on from one to the next.

struct Origin { weight: u32, absmax: u32, nested: u32 }

#if MOVING
var<private> origin: Origin;
#else
const origin = Origin(0u, 0u, 0u);
#end
