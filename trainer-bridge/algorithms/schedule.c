#include "trainer-bridge/algorithms/schedule.h"

double corral_schedule_linear(double first, double last, double progress)
{
    if (!(progress > 0)) {
        return first;
    }
    return progress >= 1 ? last : first + (last - first) * progress;
}
