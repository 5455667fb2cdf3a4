// The beginnings of the weight in its three bindings, in words. A kernel that adds up products with several weights moves them from one
// weight to the next.

struct Origin { weight: u32, absmax: u32, nested: u32 }

#if MOVING
var<private> origin: Origin;
#else
const origin = Origin(0u, 0u, 0u);
#end
