#include "document.hpp"

#include <charconv>
#include <cmath>
#include <cstdlib>

namespace edgemed::impl {
namespace {

// A float as Python's repr: the shortest digits that read back, positional from 1e-4 up to 1e16.
std::string number_text(double value) {
    char buffer[64];
    auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
    const std::string scientific(buffer, end);
    const int exponent = std::atoi(scientific.c_str() + scientific.find('e') + 1);
    if (value != 0 && (exponent < -4 || exponent >= 16)) return scientific;
    end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr;
    const std::string fixed(buffer, end);
    return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
}

void write(const Json& value, const std::string& indent, std::string& out) {
    const std::string deeper = indent + "  ";
    if (value.is_structured() && !value.empty()) {
        const char* separator = value.is_object() ? "{\n" : "[\n";
        for (auto item = value.begin(); item != value.end(); ++item) {
            out += separator + deeper;
            if (value.is_object()) out += Json(item.key()).dump() + ": ";
            write(*item, deeper, out);
            separator = ",\n";
        }
        out += "\n" + indent + (value.is_object() ? "}" : "]");
    } else if (value.is_number_float()) {
        out += number_text(value.get<double>());
    } else {
        out += value.dump();
    }
}

// The next code point of `left` > 0 bytes, and how many it took; 0, a hidden one, where the text ends within it.
uint32_t code_point(const char* text, size_t left, size_t& length) {
    const auto byte = [text](size_t k) { return uint32_t(uint8_t(text[k])); };
    const uint32_t first = byte(0);
    length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    if (length > left) return length = left, 0;
    uint32_t point = length == 1 ? first : first & (0xFFu >> (length + 1));
    for (size_t k = 1; k < length; ++k) point = point << 6 | (byte(k) & 0x3F);
    return point;
}

// Control, format, separator, surrogate and private characters (Unicode's Cc, Cf, Z* but the space, Cs, Co): first, last.
constexpr uint32_t hidden[][2] = {
    {0x00, 0x1F},       {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},     {0x61C, 0x61C},
    {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},     {0x8E2, 0x8E2},     {0x1680, 0x1680},
    {0x180E, 0x180E},   {0x2000, 0x200F},   {0x2028, 0x202F},   {0x205F, 0x206F},   {0x3000, 0x3000},
    {0xD800, 0xF8FF},   {0xFEFF, 0xFEFF},   {0xFFF0, 0xFFFB},   {0xFFFE, 0xFFFF},   {0x110BD, 0x110BD},
    {0x110CD, 0x110CD}, {0x13430, 0x1343F}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0000, 0xE007F},
    {0xF0000, 0x10FFFF},
};

}  // namespace

FieldError::FieldError(const std::string& place, const std::string& text)
    : std::runtime_error((place.empty() ? "the document" : printable(place)) + ": " + text) {}

std::string printable(const std::string& text) {
    return is_visible(text) ? text : Json(text).dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::string canonical_bytes(const Json& document) {
    std::string out;
    write(document, "", out);
    return out + "\n";
}

Json json_from(const Bytes& data, const std::string& where) {
    Json document;
    try {
        document = Json::parse(data.begin(), data.end());
    } catch (const Json::exception& error) {
        throw Error(EDGEMED_ERROR_BUNDLE, where + " is not JSON (" + printable(error.what()) + "); " + again);
    }
    if (document.is_object() && document.contains("schema_version")) {
        const Json& version = document["schema_version"];
        if (version.is_number_unsigned() && version.get<uint64_t>() > 1)
            throw Error(EDGEMED_ERROR_BUNDLE, where + " has schema version " + version.dump() +
                                                  ", this edgemed reads up to 1; install a newer edgemed "
                                                  "(the wheel or clone that made the bundle)");
    }
    return document;
}

Fields::Fields(Json& object, std::string place) : object_(object), place_(std::move(place)) {
    if (!object.is_object()) throw FieldError(place_, "is not an object");
}

Json& Fields::at(const char* name) {
    known_.insert(name);
    const auto found = object_.find(name);
    if (found == object_.end()) throw FieldError(place(name), "is missing");
    return *found;
}

bool Fields::null(const char* name) {
    known_.insert(name);
    if (!object_.contains(name)) object_[name] = nullptr;
    return object_[name].is_null();
}

std::string Fields::text(const char* name) {
    const Json& value = at(name);
    if (!value.is_string() || !is_visible(value.get_ref<const std::string&>()))
        throw FieldError(place(name), "is not text, is empty, has space around it, or does not print");
    return value;
}

std::string Fields::choice(const char* name, std::initializer_list<const char*> known) {
    std::string list;
    for (const char* one : known) {
        if (at(name) == one) return one;
        list += (list.empty() ? "'" : ", '") + std::string(one) + "'";
    }
    throw FieldError(place(name), "should be " + list);
}

std::string Fields::matching(const char* name, const char* what, bool (*fits)(const std::string&)) {
    const Json& value = at(name);
    if (!value.is_string() || !fits(value.get_ref<const std::string&>()))
        throw FieldError(place(name), std::string("is not ") + what);
    return value;
}

int64_t Fields::integer(const char* name, int64_t low, int64_t high) {
    const Json& value = at(name);
    const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(INT64_MAX);
    if (!value.is_number_integer() || huge || value.get<int64_t>() < low || value.get<int64_t>() > high)
        throw FieldError(place(name), "should be a whole number from " + std::to_string(low) + " to " +
                                          std::to_string(high));
    return value.get<int64_t>();
}

double Fields::number(const char* name, double low, double high) {
    Json& value = at(name);
    if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high))
        throw FieldError(place(name), "should be a number from " + number_text(low) + " to " + number_text(high));
    value = value.get<double>();
    return value.get<double>();
}

bool Fields::flag(const char* name) {
    known_.insert(name);
    const auto found = object_.find(name);
    if (found == object_.end()) return false;
    if (!found->is_boolean()) throw FieldError(place(name), "should be true or false");
    if (!found->get<bool>()) object_.erase(found);
    return object_.contains(name);
}

Json& Fields::array(const char* name) {
    Json& value = at(name);
    if (!value.is_array()) throw FieldError(place(name), "is not a list");
    return value;
}

Json& Fields::object(const char* name) {
    Json& value = at(name);
    if (!value.is_object()) throw FieldError(place(name), "is not an object");
    return value;
}

std::vector<std::string> Fields::texts(const char* name, size_t at_least) {
    std::vector<std::string> found;
    for (const Json& value : array(name)) {
        if (!value.is_string() || !is_visible(value.get_ref<const std::string&>()))
            throw FieldError(place(name), "holds what is not text, is empty, has space around it, or does not print");
        found.push_back(value);
    }
    if (found.size() < at_least) throw FieldError(place(name), "should hold " + std::to_string(at_least) + " or more");
    return found;
}

std::vector<double> Fields::numbers(const char* name) {
    std::vector<double> found;
    for (Json& value : array(name)) {
        if (!value.is_number()) throw FieldError(place(name), "holds what is not a number");
        value = value.get<double>();
        found.push_back(value.get<double>());
    }
    return found;
}

void Fields::range(const char* name, int64_t (&values)[3]) {
    Json& list = array(name);
    for (size_t k = 0; k < 3; ++k) {
        const bool whole = list.size() == 3 && list[k].is_number_integer();
        values[k] = whole ? list[k].get<int64_t>() : 0;
        if (values[k] < (k ? values[k - 1] : 1))
            throw FieldError(place(name), "a range is min,opt,max with 1 <= min <= opt <= max");
    }
}

void Fields::done() const {
    for (const auto& item : object_.items())
        if (!known_.count(item.key())) throw FieldError(place(item.key()), "is not known");
}

bool is_sha256(const std::string& text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool is_time(const std::string& text) {
    const std::string form = "0000-00-00T00:00:00Z";
    if (text.size() != form.size()) return false;
    for (size_t k = 0; k < form.size(); ++k)
        if (form[k] == '0' ? text[k] < '0' || text[k] > '9' : text[k] != form[k]) return false;
    return true;
}

bool is_visible(const std::string& text) {
    if (text.empty() || text.front() == ' ' || text.back() == ' ') return false;
    for (size_t k = 0, length = 0; k < text.size(); k += length) {
        const uint32_t point = code_point(text.data() + k, text.size() - k, length);
        for (const auto& range : hidden)
            if (range[0] <= point && point <= range[1]) return false;
    }
    return true;
}

}  // namespace edgemed::impl
